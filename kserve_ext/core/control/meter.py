"""How loaded one function is, from its own counters, and when it applies for scale-out of its kind.

It is past its threshold when more is asked of it a second than one function bears (calibrated.py), when its core is
used up, or when its loop comes late to what is due and it is itself what keeps the core busy. It applies when that is
so in APPLY_AFTER periods in a row, and again every period until it is no longer so: an application that gets lost
needs no memory. One that is late and has no core left applies at once: what comes queues behind what it has, and so
does all that it is to hand over to a new one. Only a process that has just begun is like that without need.
"""

from __future__ import annotations

from typing import Final

from kserve_ext.core.control.facts import Reading

APPLY_AFTER: Final = 2
#: Of one core. Above, a wait grows faster than the load does.
BUSY_MOST: Final = 0.85
#: Later than this is late, for one that uses at least half of its core: a machine that is full of others makes
#: functions late, too, and more of them would make it worse.
LATE_S: Final = 0.25
CATCH_UP_S: Final = 1.0


def past(reading: Reading, threshold: float) -> bool:
    """Whether one function has more than it bears. `threshold` 0: it never has."""
    if threshold <= 0:
        return False
    late = reading.queue_age_s > LATE_S and reading.busy > BUSY_MOST / 2
    return reading.srps > threshold or reading.busy > BUSY_MOST or late


def behind(reading: Reading) -> bool:
    """It has no core left and falls behind, whatever its threshold."""
    return reading.queue_age_s > LATE_S and reading.busy > BUSY_MOST


def pressure(reading: Reading, threshold: float) -> float:
    """How many functions this one's work would fill."""
    return max(reading.srps / threshold if threshold > 0 else 0.0, reading.busy / BUSY_MOST)


def need(reading: Reading, threshold: float) -> float:
    """How many it would take to bear that, when it is behind: a core that is used up doesn't show what waits for it.

    What waits is to be done within CATCH_UP_S, but counts as much again as what is done, at most.
    """
    waits = min(reading.queue_age_s / CATCH_UP_S, 1.0) if behind(reading) else 0.0
    return pressure(reading, threshold) * (1.0 + waits)


class Meter:
    """Of one process; `read` once a period."""

    def __init__(self, now: float, cpu_s: float = 0.0) -> None:
        self._read_at, self._cpu_s = now, cpu_s
        self._requests = 0
        self._in_a_row = 0
        self._periods = 0

    def read(self, requests: int, cpu_s: float, late_s: float, now: float) -> Reading:
        """`requests` and `cpu_s` since the process's start; `late_s` the worst of this period."""
        span = max(now - self._read_at, 1e-6)
        reading = Reading((requests - self._requests) / span, (cpu_s - self._cpu_s) / span, late_s)
        self._read_at, self._requests, self._cpu_s = now, requests, cpu_s
        self._periods += 1
        return reading

    def applies(self, reading: Reading, threshold: float) -> bool:
        self._in_a_row = self._in_a_row + 1 if past(reading, threshold) else 0
        at_once = behind(reading) and self._periods > 1
        return self._in_a_row >= (1 if at_once else APPLY_AFTER)
