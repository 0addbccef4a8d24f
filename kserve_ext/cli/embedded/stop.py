"""Ends a cluster whatever state it is in: supervisor, parts, then instances and zygotes of every node.

Works also when the supervisor was killed and parts live on. Every wait is bounded; what does not end is killed. Only
processes that the data folder names, pid and start time, are ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from kserve_ext.cli.embedded.folder import Folder, runs
from kserve_ext.rpc.process import start_ticks

SUPERVISOR_S: Final = 45.0
PART_S: Final = 5.0

PACKAGES: Final = ("autoscaler_shim", "activator_replacement", "kserve_ext.cli.embedded.supervisor")

Say = Callable[[str], None]


def stop_cluster(folder: Folder, say: Say) -> int:
    """Returns how many processes were ended. Idempotent."""
    ended = 0
    supervisor = folder.supervisor()
    if supervisor:
        say("supervisor and its parts")
        ended += 1 + len(folder.living())
        _end([supervisor], SUPERVISOR_S)
    left = folder.living()
    if left:
        say(f"{len(left)} parts without a supervisor")
        ended += len(left) if not supervisor else 0
        _end([part.pid for part in left], PART_S)
    strays = _strays(folder)
    if strays:
        say(f"{len(strays)} parts that had only just started")
        ended += len(strays)
        _end(strays, PART_S)
    nodes = sorted((folder.root / "nodes").glob("*")) if (folder.root / "nodes").is_dir() else []
    for node in nodes:
        say(f"instances and zygotes of {node.name}")
        # A plane is imported only by the sub-command that needs it.
        from autoscaler_shim.node.cleanup import stop_all

        ended += int(stop_all(node) or 0)
    for path in folder.run.glob("*.json"):
        path.unlink(missing_ok=True)
    cluster = folder.cluster()
    if "supervisor" in cluster:
        folder.write_cluster({k: v for k, v in cluster.items() if k != "supervisor"})
    return ended


def _strays(folder: Folder) -> list[int]:
    """Parts that were killed, or whose supervisor was, before they could write their run file."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        argv = process.info["cmdline"] or []
        if (
            len(argv) < 3
            or argv[1] != "-m"
            or argv[2] not in PACKAGES
            or process.info["uids"].real != os.getuid()
        ):
            continue
        if "--data" in argv[:-1] and argv[argv.index("--data") + 1] == str(folder.root):
            found.append(process.pid)
    return found


def _end(pids: list[int], patience_s: float) -> None:
    """SIGTERM, then SIGKILL for what is left after `patience_s`."""
    ticks = {pid: start_ticks(pid) for pid in pids}
    for sig, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        for pid in _left(ticks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)
        until = time.monotonic() + wait_s
        while _left(ticks) and time.monotonic() < until:
            time.sleep(0.02)
        if not _left(ticks):
            return


def _left(ticks: dict[int, int]) -> list[int]:
    return [pid for pid, started in ticks.items() if runs(pid, started)]
