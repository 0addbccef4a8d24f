"""Was the machine quiet while a bench ran? A figure taken beside other work is shown, but it is no result.

All CPU time of the machine less that of this process and of all it started is the work of others. Also what the
hypervisor took away (steal).
"""

from __future__ import annotations

import ctypes
import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

#: Shares of all cores together, over the whole run.
MOST_OTHERS, MOST_STOLEN = 0.05, 0.02
_PR_SET_CHILD_SUBREAPER = 36


class Usage(NamedTuple):
    """Seconds of CPU so far."""

    busy: float
    stolen: float
    ours: float


class Verdict(NamedTuple):
    text: str
    #: Why the figures are not valid; "" when they are.
    refused: str


def usage() -> Usage:
    """Of processes that were started here only those that have been waited for: take it when all have ended."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, soft, stolen = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields)
    mine = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Usage(user + nice + system + irq + soft, stolen, sum(u.ru_utime + u.ru_stime for u in mine))


def judge(before: Usage, after: Usage, seconds: float, cores: int, load: float) -> Verdict:
    """`load`: the load average before."""
    whole = seconds * cores
    others = max(0.0, (after.busy - before.busy) - (after.ours - before.ours)) / whole
    stolen = (after.stolen - before.stolen) / whole
    text = f"load average {load:.1f} before, others used {others:.1%} of {cores} cores, {stolen:.1%} stolen"
    busy = [
        f"{what} {share:.0%} of the machine (at most {most:.0%})"
        for what, share, most in (("others used", others, MOST_OTHERS), ("stolen was", stolen, MOST_STOLEN))
        if share > most
    ]
    return Verdict(text, " and ".join(busy))


class Watch:
    """From when it is made until `verdict`, which wants every process of the bench ended."""

    def __init__(self) -> None:
        # Whoever loses its parent becomes a child of this process, so that its time is known here as well.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._load = os.getloadavg()[0]
        self._before = usage()
        self._began = time.monotonic()

    def verdict(self) -> Verdict:
        seconds = time.monotonic() - self._began
        return judge(self._before, usage(), seconds, os.cpu_count() or 1, self._load)
