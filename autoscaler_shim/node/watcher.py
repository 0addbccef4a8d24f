"""Notices at once that a process has ended, also one that is nobody's child here.

A pidfd becomes readable when its process ends. How it ended is known from `exit.json` (a zygote reaps its forks
and writes it), or by reaping when the process is our own child; otherwise it stays unknown. What the process
leaves behind in its group is killed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from autoscaler_shim.node.folders import read_json
from autoscaler_shim.node.processes import Process

EXIT_JSON_PERIOD_S = 0.005
EXIT_JSON_LOOKS = 100


class Exit(NamedTuple):
    code: int | None
    signum: int | None


Ended = Callable[[Exit], None]


class Watcher:
    def __init__(self) -> None:
        self._fds: set[int] = set()
        self._waits: set[asyncio.Task[None]] = set()

    def watch(
        self,
        process: Process,
        ended: Ended,
        *,
        child: subprocess.Popen[bytes] | None = None,
        folder: Path | None = None,
        parent: Process | None = None,
    ) -> None:
        """Calls `ended` once, soon after the end. `folder` is where exit.json will be, if anywhere.

        `parent`: who writes it, if known: once that has ended, it isn't waited for.
        """
        loop = asyncio.get_running_loop()
        try:
            fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            loop.call_soon(self._collect, process, ended, child, folder, parent)
            return
        if not process.alive:
            os.close(fd)
            loop.call_soon(self._collect, process, ended, child, folder, parent)
            return

        def readable() -> None:
            loop.remove_reader(fd)
            self._fds.discard(fd)
            os.close(fd)
            self._collect(process, ended, child, folder, parent)

        self._fds.add(fd)
        loop.add_reader(fd, readable)

    @property
    def watching(self) -> int:
        """How many processes have not ended."""
        return len(self._fds)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in self._fds:
            loop.remove_reader(fd)
            os.close(fd)
        self._fds.clear()
        for task in self._waits:
            task.cancel()

    def _collect(
        self,
        process: Process,
        ended: Ended,
        child: subprocess.Popen[bytes] | None,
        folder: Path | None,
        parent: Process | None,
    ) -> None:
        process.kill_group()  # before it is reaped: until then its pid is not given away
        if child is not None:
            status = child.wait()
            ended(Exit(None, -status) if status < 0 else Exit(status, None))
        elif folder is None:
            ended(Exit(None, None))
        else:
            task = asyncio.get_running_loop().create_task(self._wait_for_exit_json(ended, folder, parent))
            self._waits.add(task)
            task.add_done_callback(self._waits.discard)

    async def _wait_for_exit_json(self, ended: Ended, folder: Path, parent: Process | None) -> None:
        """The zygote reaps a moment after the pidfd has become readable."""
        for _ in range(EXIT_JSON_LOOKS):
            orphan = parent is not None and not parent.alive  # asked first: it may have been its last act
            if orphan or (folder / "exit.json").exists():
                break
            await asyncio.sleep(EXIT_JSON_PERIOD_S)
        ended(read_exit(folder))


def read_exit(folder: Path) -> Exit:
    facts = read_json(folder / "exit.json")
    signum = facts.get("signal") or None
    return Exit(None if signum else facts.get("code"), signum)
