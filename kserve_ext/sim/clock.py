"""Virtual time: what is to happen, in order. Of one moment, what was asked for first happens first.

A Core does one thing at a time, as a process with one thread does: what comes while it is busy waits its turn. It
counts how long it was busy, which is what a control plane costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Call = Callable[[], None]


class Clock:
    """`now` is in seconds and never goes back."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._due: list[tuple[float, int, Call]] = []
        self._asked = 0

    def at(self, when: float, call: Call) -> None:
        """A moment that has passed is now."""
        self._asked += 1
        heapq.heappush(self._due, (max(when, self.now), self._asked, call))

    def after(self, seconds: float, call: Call) -> None:
        self.at(self.now + seconds, call)

    def every(self, seconds: float, call: Call, first: float | None = None) -> None:
        """For as long as the clock runs."""

        def again() -> None:
            call()
            self.after(seconds, again)

        self.after(seconds if first is None else first, again)

    def run(self, until: float) -> None:
        """Everything that is due by then; afterwards it is that time."""
        while self._due and self._due[0][0] <= until:
            self.now, _, call = heapq.heappop(self._due)
            self.steps += 1
            call()
        self.now = max(self.now, until)


class Core:
    """One processor of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free_at = 0.0
        self.busy = 0.0  # seconds, in all

    def do(self, seconds: float, then: Call) -> None:
        """`then` happens when this work is done, behind all that was asked for before."""
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self.busy += seconds
        self._clock.at(self._free_at, then)

    def spend(self, seconds: float) -> None:
        """Work that nobody waits for, but all that follows does."""
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self.busy += seconds

    @property
    def backlog(self) -> float:
        """Seconds until it would begin with something new."""
        return max(0.0, self._free_at - self._clock.now)
