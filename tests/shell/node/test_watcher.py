"""The end of a process whose parent, who would have said how it ended, is gone itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoscaler_shim.node import watcher
from autoscaler_shim.node.processes import Process, identify
from autoscaler_shim.node.watcher import Exit, Watcher

#: Starts another, and says which.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def known(pid: int) -> Process:
    found = identify(pid)
    assert found is not None
    return found


def test_an_orphan_s_end_is_told_though_nobody_will_say_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "EXIT_JSON_LOOKS", 10**9)
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = known(int(parent.stdout.readline()))

        async def run() -> Exit:
            watching = Watcher()
            ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
            watching.watch(child, ended.set_result, folder=tmp_path, parent=known(parent.pid))
            parent.kill()
            parent.wait()
            os.kill(child.pid, signal.SIGKILL)
            try:
                return await asyncio.wait_for(ended, 20)
            finally:
                watching.close()

        assert asyncio.run(run()) == Exit(None, None)
