"""Facts about processes that need not be our children: who is alive, which session, which instance.

A process is named by its pid and its start time in clock ticks, since pids are used again. A zombie counts as
dead. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    pid: int
    ticks: int

    @property
    def alive(self) -> bool:
        return start_ticks(self.pid) == self.ticks

    def terminate(self) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill_group(self) -> None:
        """The process and all in its group, also when it has itself already ended.

        A pid in use as a group is not given away, so a different start time means that the group is empty.
        """
        if start_ticks(self.pid, zombies=True) in (self.ticks, None):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


#: No process: never alive.
NOBODY = Process(0, -1)


def parent_of(process: Process) -> int | None:
    """The pid of its parent, also of a zombie; None once it is gone."""
    fields = _stat(process.pid)
    return int(fields[1]) if fields is not None and int(fields[19]) == process.ticks else None


def start_ticks(pid: int, *, zombies: bool = False) -> int | None:
    """When the process started, in clock ticks since boot; None if there is no such process."""
    fields = _stat(pid)
    if fields is None or (not zombies and fields[0] in "ZX"):
        return None
    return int(fields[19])


def identify(pid: int) -> Process | None:
    ticks = start_ticks(pid)
    return None if ticks is None else Process(pid, ticks)


def leaders() -> Iterator[tuple[Process, int]]:
    """Every session leader that is alive, with its parent's pid."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields is not None and fields[0] not in "ZX" and fields[3] == entry:
                yield Process(int(entry), int(fields[19])), int(fields[1])


def living_in(folder: Path) -> list[Process]:
    """Session leaders whose working directory this is: an instance's, from before its session was its own."""
    found = []
    for process, _ in leaders():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{process.pid}/cwd") == str(folder):
                found.append(process)
    return found


def environment(pid: int) -> dict[str, str]:
    """The environment that the process was executed with; {} when it can't be read."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition("=") for item in data.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in pairs if name}


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; the second may hold any character."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
