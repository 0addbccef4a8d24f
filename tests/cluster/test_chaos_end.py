"""A chaos run that is killed leaves nothing behind: no part, no instance, no zygote, no state store, no namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.network import possible
from tests.chaos.statestore import why_not
from tests.support.embedded import ROOT

pytestmark = pytest.mark.cluster

WITHIN_S = 60.0


def of(folder: Path) -> dict[int, str]:
    """The processes that have the folder in their command or environment, with their commands."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv, env = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in argv + env:
            found[int(entry.name)] = argv.replace(b"\0", b" ").decode()
    return found


def until(true: Callable[[], bool]) -> bool:
    due = time.monotonic() + WITHIN_S
    while not true():
        if time.monotonic() > due:
            return False
        time.sleep(0.05)
    return True


def namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").glob("gx*")}


@pytest.mark.parametrize("script", ["functions-go", "leader-goes-store-is-lost", "cut-off"])
def test_what_a_killed_run_has_started_ends(script: str, tmp_path: Path) -> None:
    """With its group, as an impatient CI does it; while an instance runs, and a zygote where there is one."""
    if script == "cut-off" and not possible():
        pytest.skip("network namespaces need root and the ip command")
    if script.startswith("leader") and (why := why_not()):
        pytest.skip(f"no redis-server: {why}")
    argv = [sys.executable, "-m", "tests.chaos", "--script", script, "--keep", str(tmp_path)]
    with (tmp_path / "said").open("wb") as said:
        runner = subprocess.Popen(argv, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
    try:
        # A function that the controller has started is forked from a zygote.
        wanted = "schedule-e*" if script == "functions-go" else "instance.*"
        assert until(lambda: any((tmp_path / "history").glob(wanted))), (tmp_path / "said").read_text()
    finally:
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    assert until(lambda: not of(tmp_path)), of(tmp_path)
    assert not any(name.startswith(f"gx{runner.pid % 100_000}-") for name in namespaces())
