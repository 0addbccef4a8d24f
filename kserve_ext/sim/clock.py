"""Virtual time: what is to happen, in order. Of one moment, what was asked for first happens first.

A Core does one thing at a time, as a process with one thread does: what comes while it is busy waits its turn; what
it asks itself is done next. It counts how long it was busy, which is what a control plane costs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from functools import partial

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
        heapq.heappush(self._due, (max(when, self.now), self._asked, self.bind(call)))

    def bind(self, call: Call, what: str = "", kind: str = "", work_s: float = 0.0) -> Call:
        """What will happen because of what happens now; a clock that traces remembers that (stages.py)."""
        return call

    def mark(self, what: str, kind: str) -> None:
        """Something has happened; for a clock that traces."""

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
        self._own: deque[tuple[float, Call]] = deque()
        self._come: deque[tuple[float, Call]] = deque()
        self._queued = 0.0  # seconds of both
        self._works = False
        self._free_at = 0.0
        self._owed = 0.0  # what comes before the next
        self.busy = 0.0  # seconds, in all

    def do(self, seconds: float, then: Call, *, own: bool = False) -> None:
        """`then` happens when this work is done, behind all that was asked for before.

        `own`: a process asks itself, which takes no socket: it goes before all that waits in its sockets.
        """
        (self._own if own else self._come).append((seconds, self._clock.bind(then)))
        self._queued += seconds
        self.busy += seconds
        if not self._works:
            self._next()

    def spend(self, seconds: float) -> None:
        """Work that nobody waits for, but all that follows does."""
        self.busy += seconds
        if self._works:
            self._owed += seconds
        else:
            self._free_at = max(self._free_at, self._clock.now) + seconds

    @property
    def backlog(self) -> float:
        """Seconds until all is done that was asked for."""
        return max(0.0, self._free_at - self._clock.now) + self._owed + self._queued

    def _next(self) -> None:
        lane = self._own or self._come
        self._works = bool(lane)
        self._free_at = max(self._free_at, self._clock.now) + self._owed
        self._owed = 0.0
        if lane:
            seconds, then = lane.popleft()
            self._queued = self._queued - seconds if self._own or self._come else 0.0
            self._free_at += seconds
            self._clock.at(self._free_at, partial(self._done, then))

    def _done(self, then: Call) -> None:
        then()
        self._next()
