"""Every process below the slot: it is the first of its container, so whoever loses its parent becomes its child.

Outside of a container (tests, a kubelet's stand-in) the same is asked of the kernel. Ended children that nobody else
waits for are reaped, and at the end nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection

_PR_SET_CHILD_SUBREAPER = 36
_LATER_S = 0.05


def become_first() -> None:
    """Orphans of this process's children become its own. Nothing to do for the first process."""
    if os.getpid() != 1:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Reaper:
    """Reaps orphans; not `own()`, the children that somebody here waits for."""

    def __init__(self) -> None:
        self.own: set[int] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def close(self) -> None:
        self._loop.remove_signal_handler(signal.SIGCHLD)

    def reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in self.own:  # hides the others until it is waited for
                self._loop.call_later(_LATER_S, self.reap)
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found.si_pid, os.WNOHANG)


def end_strays(kept: Collection[int], seconds: float = 1.0) -> list[int]:
    """Kills this process's children but those, and what is below them: what a parent has left that has died.

    One may fork between the look and the kill, and its child comes to this process. So it looks again until it has
    found nobody new twice: whoever was missed while it changed parents has arrived by the second look. Nobody is
    reaped meanwhile, so no pid means another process. Those that fork faster are given up after `seconds`.
    """
    strays: dict[int, None] = {}
    killed: set[int] = set()
    ended: set[int] = set()
    quiet, until = 0, time.monotonic() + seconds
    while quiet < 2 and time.monotonic() < until:
        before = len(killed)
        found = [pid for pid in _children(os.getpid()) if pid not in kept and pid not in ended]
        _kill(found, killed)
        strays |= dict.fromkeys(found)
        ended.update(pid for pid in found if _ended(pid))  # these have no children, and may be many
        _kill(_below([pid for pid in found if pid not in ended]), killed)
        quiet = 0 if len(killed) > before else quiet + 1
    return list(strays)


def _kill(pids: Collection[int], killed: set[int]) -> None:
    """Those that haven't been killed yet."""
    for pid in pids:
        if pid not in killed:
            killed.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _ended(child: int) -> bool:
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def end_all(seconds: float = 5.0) -> int:
    """Kills and reaps everything below this process; how many processes there were."""
    killed: set[int] = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        children = _children(os.getpid())
        if not children:
            break
        for pid in _below(children):
            killed.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.002)  # the last one's end is a moment away
    return len(killed)


def _below(pids: Collection[int]) -> list[int]:
    found = list(pids)
    for pid in found:
        found += _children(pid)
    return found


def _children(pid: int) -> list[int]:
    """Of all its threads; [] when it has none, or is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found
