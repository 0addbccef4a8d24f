"""How many functions of one kind there are to be: one decision for all that apply, and a slow way back.

Growth answers applications. The first one decides, from the load of all functions of the kind, and its answer stands
for everybody that applies until the functions it brings are in everybody's view and their loads are known: a wave.
Without that, each of ten overloaded functions would bring its own. The wave becomes larger when one that applies is
as far behind as before, and the work of all needs more than the wave brings: a burst goes on rising meanwhile, and
who is behind knows the view late. To shrink needs no application: one function at a time, when the rest would have
had little to do throughout the stable window. What a number of functions was once too few for is remembered, so that
a load that is merely badly divided doesn't make the number go up and down for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass
from math import ceil
from typing import Final, NamedTuple

from kserve_ext.core.control.facts import Answer, Bounds, Decision, Reading, ScaledKind
from kserve_ext.core.control.meter import behind, need, past, pressure
from kserve_ext.core.ids import FunctionID

#: Of its threshold, what each is to bear after growth, and may bear at most after shrinking.
TARGET: Final = 0.8
LOW: Final = 0.6
#: Of the load that so few were too few for, below which they are tried again.
RELEASE: Final = 0.7


class Pace(NamedTuple):
    """In seconds; tests shorten them."""

    stable_s: float = 60.0  # that the load must have been low before the first is given up
    shrink_s: float = 10.0  # between two that are given up
    cool_s: float = 1.5  # after growth, until every function has reported what it has to do now
    wave_s: float = 10.0  # a growth that has not come about by then stands in nobody's way


@dataclass(slots=True)
class _Wave:
    answer: Answer
    decided_at: float
    late_s: float  # who applied for it was so late
    settled_at: float | None = None


class Scaling:
    """Of one kind. `wanted` is within the bounds at all times."""

    def __init__(
        self,
        kind: ScaledKind,
        bounds: Bounds,
        threshold: float,
        now: float,
        pace: Pace = Pace(),  # noqa: B008
    ) -> None:
        self.kind, self.bounds, self.threshold, self.pace = kind, bounds, threshold, pace
        self.wanted = bounds.min
        self.decision = Decision(now, bounds.min, f"{bounds.min} to begin with")
        self.readings: dict[FunctionID, Reading] = {}
        self.applications_total = self.growths_total = 0
        self._wave: _Wave | None = None
        #: when a number of functions was too few: how much there was to do
        self._too_much_for: dict[int, float] = {}
        #: among how many work was divided at the last tick
        self.running = bounds.min
        self._began_at = self._changed_at = now
        #: the last change made it fewer
        self._shrank = False
        #: (when, load) of the last stable_s, of which the loads only fall: the first is the largest
        self._peaks: deque[tuple[float, float]] = deque()

    @property
    def elastic(self) -> bool:
        return self.bounds.max > self.bounds.min and self.threshold > 0

    @property
    def pressure(self) -> float:
        """How many functions the work of all would fill."""
        return sum(pressure(reading, self.threshold) for reading in self.readings.values())

    @property
    def srps(self) -> float:
        return sum(reading.srps for reading in self.readings.values())

    def restore(self, wanted: int, now: float) -> None:
        """What an earlier controller has decided, as far as today's bounds allow it."""
        self.wanted = min(max(wanted, self.bounds.min), self.bounds.max)
        if self.wanted != self.bounds.min:
            self.decision = Decision(now, self.wanted, f"{self.wanted} as an earlier controller has decided")

    def report(self, function: FunctionID, reading: Reading) -> None:
        self.readings[function] = reading

    def keep_only(self, functions: Set[FunctionID]) -> None:
        """The functions of this kind that work is divided among."""
        for name in [name for name in self.readings if name not in functions]:
            del self.readings[name]

    def apply(self, function: FunctionID, reading: Reading, now: float) -> Answer:
        """An application for scale-out."""
        self.readings[function] = reading
        self.applications_total += 1
        total = sum(need(known, self.threshold) for known in self.readings.values())
        if self._in_wave(now):
            assert self._wave is not None
            still = behind(reading) and reading.queue_age_s > self._wave.late_s / 2  # less: it gets through
            if not still or min(ceil(total / TARGET), self.bounds.max) <= self.wanted:
                return self._wave.answer
        if not past(reading, self.threshold):
            return Answer(0, f"{function} is not past its threshold: {self._load(reading)}")
        if self.wanted >= self.bounds.max:
            reason = (
                f"{self.wanted} {self.kind} functions are the most that there may be: {self._load(reading)}"
            )
            self.decision = self.decision._replace(reason=reason)
            return Answer(0, reason)
        before = self.wanted
        one_more = before + 1 if self.running >= before else before  # else the last ones have yet to come
        wanted = min(max(one_more, ceil(total / TARGET)), self.bounds.max)
        if wanted == before:
            return Answer(0, f"{before} are wanted, {self.running} run: {self._load(reading)}")
        ran = min(self.running, before)  # of those that have yet to come nobody knows what they bear
        self._too_much_for[ran] = self.pressure
        self.wanted = wanted
        self.growths_total += 1
        reason = (
            f"{before} -> {self.wanted}: {function} applied ({self._load(reading)}); "
            f"{self.srps:,.0f}/s in all, {self.threshold:,.0f}/s each at most"
        )
        self._decide(reason, now)
        answer = Answer(self.wanted - before, reason)
        self._wave = _Wave(answer, now, reading.queue_age_s)
        return answer

    def settled(self, now: float) -> float | None:
        """As many as are wanted are in everybody's view. Seconds since the application that this answers, once."""
        if self._wave is None or self._wave.settled_at is not None:
            return None
        self._wave.settled_at = now
        return now - self._wave.decided_at

    def tick(self, now: float, running: int) -> bool:
        """Once a period, with how many work is divided among; whether one fewer is wanted from now on."""
        self.running = running
        self._observe(now)
        pace, fewer = self.pace, self.wanted - 1
        pause = pace.shrink_s if self._shrank else pace.stable_s
        if (
            fewer < self.bounds.min
            or running < self.wanted
            or self._in_wave(now)
            or now - self._began_at < pace.stable_s
            or now - self._changed_at < pause
        ):
            return False
        peak = self._peaks[0][1]
        if peak > LOW * fewer or peak >= RELEASE * self._too_much_for.get(fewer, float("inf")):
            return False
        self.wanted = fewer
        self._decide(
            f"{fewer + 1} -> {fewer}: for {pace.stable_s:g} s there was work for {peak:.1f} at most", now
        )
        return True

    # --- inside

    def _decide(self, reason: str, now: float) -> None:
        self._shrank = self.wanted < self.decision.wanted
        self.decision = Decision(now, self.wanted, reason)
        self._changed_at = now

    def _in_wave(self, now: float) -> bool:
        wave = self._wave
        if wave is None:
            return False
        if wave.settled_at is None:
            return now - wave.decided_at < self.pace.wave_s
        return now - wave.settled_at < self.pace.cool_s

    def _observe(self, now: float) -> None:
        load = self.pressure
        while self._peaks and self._peaks[-1][1] <= load:
            self._peaks.pop()
        self._peaks.append((now, load))
        while self._peaks[0][0] < now - self.pace.stable_s:
            self._peaks.popleft()

    def _load(self, reading: Reading) -> str:
        late = f", {reading.queue_age_s * 1e3:.0f} ms late" if reading.queue_age_s > 0.01 else ""
        return f"{reading.srps:,.0f}/s, {reading.busy:.0%} of a core{late}"
