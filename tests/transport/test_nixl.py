"""The optional rung nixl: when it is offered, and all of nixl/checks.py where the package is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from bench.peers import packages
from runtimes.transport import nixl, nixl_agent
from runtimes.transport.channel import ChannelError
from runtimes.transport.kinds import Setting
from runtimes.transport.nixl import NixlKind
from tests.engine.instances import ROOT
from tests.support.channel_ends import WAIT_S
from tests.transport.nixl.channels import decode, prefill

SETTING = Setting(("nixl",), 1 << 20)
#: The libraries that come with NIXL crash in `exit`.
PROGRAM = "import os, sys, pytest; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"


def test_where_it_is_not_installed_the_channel_has_another_rung_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nixl, "version", lambda: "")
    listener, accepted = prefill()
    near = decode(listener.addr, ("nixl", "tcp"))
    far = accepted.get(timeout=WAIT_S)
    assert near.rungs == far.rungs == ("tcp",)
    assert near.passed == far.passed == ("nixl: the package nixl is not installed",)
    with pytest.raises(ChannelError, match="nixl: the package nixl is not installed"):
        decode(listener.addr)
    for channel in (near, far):
        channel.close()
    listener.close()


def test_two_versions_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "version", lambda: "1.5.1")
    assert NixlKind.answered(NixlKind.offered(SETTING).word(), SETTING).word() == b"1.5.1"
    with pytest.raises(ChannelError, match=r"version 1.4.0 there, 1.5.1 here; install the same"):
        NixlKind.answered(b"1.4.0", SETTING)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("", "^cma,knem,xpmem"),
        ("all", "^cma,knem,xpmem"),
        ("tcp", "tcp"),
        ("rc,sm,self", "rc,posix,sysv,self"),
        ("shm,cma,posix", "posix,sysv"),
        ("^tcp", "^tcp,cma,knem,xpmem"),
        ("^cma,tcp", "^cma,tcp,knem,xpmem"),
    ],
)
def test_ways_that_the_receiver_cannot_end_are_left_out(given: str, allowed: str) -> None:
    assert nixl_agent.allowed_ways(given) == allowed


@pytest.mark.parametrize(
    ("ways", "which"), [("tcp", ""), ("tcp,sm,self", "land_where or after_the_end or dies")]
)
def test_for_real(ways: str, which: str) -> None:
    """`ways`: what UCX may use."""
    folder = "" if importlib.util.find_spec("nixl") else str(packages.folder("nixl"))
    if folder and not os.path.isdir(folder):
        pytest.skip(f"nixl is not installed: pip install --no-deps {' '.join(packages.PACKAGES['nixl'])}")
    path = os.pathsep.join(filter(None, (folder, str(ROOT))))
    env = {**os.environ, "PYTHONPATH": path, "UCX_TLS": ways, "UCX_NET_DEVICES": "lo"}
    words = ["-q", "-p", "no:cacheprovider", "tests/transport/nixl/checks.py", "-k", which]
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
