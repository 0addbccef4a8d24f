"""Ends everything that a node has running: its instances and zygotes, by what its folder says of them.

For `galaxy down`, after the node's agent has ended. Only processes whose start time matches are touched.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from autoscaler_shim.node.folders import read_json, remove_sockets
from autoscaler_shim.node.processes import Process, leaders
from autoscaler_shim.node.recovery import belongs, process_of

GRACE_S = 5.0


def stop_all(node_dir: Path, grace_s: float = GRACE_S) -> int:
    """Instances are asked to drain and killed after `grace_s`; how many processes there were."""
    root = node_dir.resolve()
    zygotes = _zygotes(root)
    found = _instances(root, {z.pid for z in zygotes})
    for zygote in zygotes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote.pid, signal.SIGKILL)  # first: it forks no more
    for process in found:
        process.terminate()
    _wait(found, grace_s)
    for process in found:
        process.kill_group()
    _wait([*found, *zygotes], grace_s)
    remove_sockets(root)
    return len(found) + len(zygotes)


def _zygotes(root: Path) -> list[Process]:
    facts = [read_json(file) for file in sorted((root / "zygotes").glob("*.json"))]
    processes = [Process(int(f.get("pid", 0)), int(f.get("ticks", 0))) for f in facts]
    return [p for p in processes if p.pid and p.alive]


def _instances(root: Path, zygotes: set[int]) -> list[Process]:
    places = sorted((root / "instances").glob("*/spec.msgpack"))
    found = {p for p in (process_of(place.parent) for place in places) if p is not None}
    for process, parent in leaders():
        if parent in zygotes or belongs(process, root / "instances"):
            found.add(process)
    return sorted(found)


def _wait(processes: list[Process], seconds: float) -> None:
    """Until all have ended, at most so long."""
    poll = select.poll()
    fds: set[int] = set()
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(process.pid)
            if process.alive:
                fds.add(fd)
                poll.register(fd, select.POLLIN)
            else:
                os.close(fd)
    until = time.monotonic() + seconds
    while fds and time.monotonic() < until:
        for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000):
            poll.unregister(fd)
            fds.discard(fd)
            os.close(fd)
    for fd in fds:
        os.close(fd)
