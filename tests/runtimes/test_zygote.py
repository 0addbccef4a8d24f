"""The zygote without an engine: what its answer promises."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_ext.rpc.zygote import Zygote
from runtimes.vllm_pd.zygote import program
from tests.support.embedded import ROOT

#: A child that takes long to get its session, as on a busy machine.
SLOW = """
import os, sys, time
from kserve_ext.rpc.zygote import Zygote
from runtimes.vllm_pd.zygote import program
setsid = os.setsid
os.setsid = lambda: (time.sleep(0.2), setsid())
zygote = Zygote(sys.argv[1], "slow", program("tests.support.fake_runtime"))
print("listens", flush=True)
zygote.run()
"""


#: A thread that Python does not count, as a library's; its name is the first argument.
THREAD = """
import _thread, os, sys, threading
from kserve_ext.rpc.zygote import assert_forkable
named, end = threading.Semaphore(0), threading.Semaphore(0)
def library():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
        comm.write(sys.argv[1])
    named.release()
    end.acquire()
_thread.start_new_thread(library, ())
named.acquire()
assert_forkable()
"""


def test_only_threads_that_are_known_to_be_no_harm_let_a_zygote_fork() -> None:
    def ends(thread: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", THREAD, thread], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    assert ends("cuda00001800007") == (0, "")  # of NVIDIA's management library
    code, said = ends("jemalloc_bg_thd")
    assert code == 1
    assert "not forkable: threads of the system: ['jemalloc_bg_thd']" in said


def test_an_instance_has_its_own_session_when_it_is_told_of(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, path], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    ) as zygote:
        assert zygote.stdout is not None
        zygote.stdout.readline()
        request = {"argv": ["--port", "0", "--stuck"], "cwd": str(tmp_path)}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answer:
                pid = json.loads(answer.readline())["pid"]
        try:
            assert os.getsid(pid) == os.getpgid(pid) == pid
        finally:
            os.kill(pid, signal.SIGKILL)
            zygote.kill()


def test_a_fork_that_fails_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", full)
    zygote = Zygote(str(tmp_path / "sock"), "full", program("tests.support.fake_runtime"))
    ours, theirs = socket.socketpair()
    with ours, theirs, zygote._listener:
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="Resource temporarily unavailable"):
            zygote._answer({"argv": ["--port", "0"]}, ours)
        assert sorted(os.listdir("/proc/self/fd")) == before
