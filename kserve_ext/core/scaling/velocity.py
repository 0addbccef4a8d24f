"""How many tokens a second an instance does while it is at it: its token velocity, measured from its own work.

Prefill: tokens over the seconds in which at least one of its jobs ran; jobs that overlap count their time once. Older
work weighs less, by HALF_S. Decode: tokens a second over the share of its capacity (KV blocks, running requests) that
was in use; what an almost idle engine does says nothing of a full one, so that only OCCUPIED counts. Pure.
"""

from __future__ import annotations

from typing import Final

HALF_S: Final = 30.0  # of busy time after which a measurement counts half
ENOUGH_S: Final = 0.5  # of busy time, below which nothing is known
OCCUPIED: Final = 0.2
_LONGEST_S: Final = 3600.0  # no job takes longer: a clock was set


class PrefillVelocity:
    """Of one instance, or of all of a revision when each of its instances has an account of its own beside it."""

    __slots__ = ("_busy_s", "_busy_until", "_tokens")

    def __init__(self) -> None:
        self._tokens = self._busy_s = 0.0
        self._busy_until = 0.0

    def ran(self, tokens: int, started: float, ended: float) -> None:
        """A job of so many tokens, by the instance's own clock. What can't be is left out."""
        if tokens <= 0 or not 0 < ended - started < _LONGEST_S:
            return
        if started < self._busy_until - _LONGEST_S:
            self._busy_until = 0.0
        busy_s = max(0.0, ended - max(started, self._busy_until))
        self._busy_until = max(self._busy_until, ended)
        kept = 0.5 ** (busy_s / HALF_S)
        self._tokens = self._tokens * kept + tokens
        self._busy_s = self._busy_s * kept + busy_s

    @property
    def tokens_s(self) -> float:
        """0: not known yet."""
        return self._tokens / self._busy_s if self._busy_s >= ENOUGH_S else 0.0


class DecodeVelocity:
    """Of all instances of a revision: what one would generate if it were full."""

    __slots__ = ("_capacity_s", "_seconds")

    def __init__(self) -> None:
        self._capacity_s = self._seconds = 0.0

    def did(self, tokens: int, occupancy: float, span_s: float) -> None:
        """An instance has generated so many tokens in so long, and was so full (0 to 1) on average."""
        if span_s <= 0 or tokens <= 0 or not OCCUPIED <= occupancy <= 1.0:
            return
        kept = 0.5 ** (span_s / HALF_S)
        self._capacity_s = self._capacity_s * kept + tokens / occupancy
        self._seconds = self._seconds * kept + span_s

    @property
    def tokens_s(self) -> float:
        """0: not known yet."""
        return self._capacity_s / self._seconds if self._seconds >= ENOUGH_S else 0.0
