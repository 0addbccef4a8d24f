"""Averages over the last seconds: what the stable and panic windows of KPA see, and the scale-down delay.

Values are added into buckets of one second. The average is over the seconds from the first to the last write
that are still inside the window: a window that is only partly filled isn't diluted, a gap inside counts as
zeros, and silence for a whole window starts anew. Numbers equal those of Knative's
pkg/autoscaler/aggregation (bucketing.go and max/), including its rounding to six decimals.
Never reads a clock: every verb takes `now` in seconds of one source.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Algorithm = Literal["linear", "weighted-exponential"]

_DIGITS = 10**6
_LEAST_WEIGHT = 0.2  # below it, a long window would hardly differ from the plain mean
_UNCOVERED = 0.0001  # the weights of all buckets sum to at least 1 less this much


class LinearWindow:
    """Sums by bucket, and their mean. Record once a second and source the mean of that second."""

    __slots__ = ("_count", "_first", "_last", "_sums", "granularity_s", "window_s")

    def __init__(self, window_s: float, granularity_s: float = 1.0) -> None:
        self.window_s = window_s
        self.granularity_s = granularity_s
        #: buckets in the window
        self._count = math.ceil(window_s / granularity_s)
        #: sum by bucket number; none is older than the last write by the window or more
        self._sums: dict[int, float] = {}
        #: earliest bucket since the last silent window, None before any write
        self._first: int | None = None
        self._last: int | None = None

    def record(self, now: float, value: float) -> None:
        """Adds `value` to its bucket. A late one counts if it is inside the window, else it is dropped."""
        bucket = self._bucket(now)
        if self._last is not None and not self._inside(self._last - bucket):
            return
        if self._first is None or self._last is None or not self._inside(bucket - self._last):
            self._sums.clear()
            self._first = self._last = bucket
        else:
            self._first = min(self._first, bucket)
            if bucket > self._last:
                self._last = bucket
                self._forget(bucket - self._count)
        self._sums[bucket] = self._sums.get(bucket, 0.0) + value

    def average(self, now: float) -> float:
        """Mean over the valid seconds; 0 after a silent window. A `now` before the last write means that write."""
        if self._first is None or self._last is None:
            return 0.0
        gap = max(0, self._bucket(now) - self._last)
        if not self._inside(gap):
            return 0.0
        oldest = self._last + gap - self._count
        total = sum(value for bucket, value in self._sums.items() if bucket > oldest)
        return _rounded(total / min(self._last - self._first + 1, self._count - gap))

    def empty(self, now: float) -> bool:
        """Nothing has been written for more than a window."""
        return self._last is None or (self._bucket(now) - self._last) * self.granularity_s > self.window_s

    def resize(self, window_s: float, now: float) -> None:
        """Changes the length. The newest buckets stay; the time before them counts as observed, as in Knative."""
        if window_s == self.window_s:
            return
        former = self._count
        silent = self.empty(now)
        self.window_s = window_s
        self._count = math.ceil(window_s / self.granularity_s)
        if silent or self._last is None:
            self._sums.clear()
            self._first = self._last = None
            return
        self._first = self._last - former + 1
        self._forget(self._last - self._count)

    def _bucket(self, now: float) -> int:
        return math.floor(now / self.granularity_s)

    def _inside(self, buckets: int) -> bool:
        return buckets * self.granularity_s < self.window_s

    def _forget(self, upto: int) -> None:
        for bucket in [b for b in self._sums if b <= upto]:
            del self._sums[bucket]


class WeightedWindow(LinearWindow):
    """Recent seconds weigh more: each older bucket counts (1 - weight) of its successor. Not normalised."""

    __slots__ = ()

    @property
    def weight(self) -> float:
        return max(1 - math.pow(_UNCOVERED, 1 / self._count), _LEAST_WEIGHT)

    def average(self, now: float) -> float:
        if self._last is None or self.empty(now):
            return 0.0
        weight = self.weight
        gap = max(0, self._bucket(now) - self._last)
        # In the order in which Knative multiplies and adds: a target may be just what comes out.
        share = weight * math.pow(1 - weight, gap) if gap else weight
        total = 0.0
        for age in range(self._count - gap):
            total += self._sums.get(self._last - age, 0.0) * share
            share *= 1 - weight
        return total


class MaxWindow:
    """The largest of the values recorded in the last `window_s`, by steps of one tick (scale-down delay)."""

    __slots__ = ("_count", "_step_s", "_values")

    def __init__(self, window_s: float, step_s: float) -> None:
        self._count = math.ceil(window_s / step_s)
        self._step_s = step_s
        #: step and value, in order of step, values strictly falling: a smaller older one can't matter again
        self._values: list[tuple[int, int]] = []

    def record(self, now: float, value: int) -> int:
        """Takes a value in and returns the largest. Two in one step: the larger counts."""
        step = math.floor(now / self._step_s)
        if self._values:
            step = max(step, self._values[-1][0])
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        if not self._values or self._values[-1][0] != step:
            self._values.append((step, value))
        while step - self._values[0][0] >= self._count:
            self._values.pop(0)
        return self._values[0][1]


class Averages(NamedTuple):
    stable: float
    panic: float


class MetricWindows:
    """The two windows of one metric (concurrency or requests per second) of one revision."""

    __slots__ = ("_panic", "_stable")

    def __init__(self, stable_s: float, panic_s: float, algorithm: Algorithm = "linear") -> None:
        kind = WeightedWindow if algorithm == "weighted-exponential" else LinearWindow
        self._stable = kind(stable_s)
        self._panic = kind(panic_s)

    def record(self, now: float, value: float) -> None:
        self._stable.record(now, value)
        self._panic.record(now, value)

    def averages(self, now: float) -> Averages:
        return Averages(self._stable.average(now), self._panic.average(now))

    def empty(self, now: float) -> bool:
        """No data: with nobody reporting, an average of 0 says nothing (Knative then keeps the former scale)."""
        return self._stable.empty(now)

    def resize(self, stable_s: float, panic_s: float, now: float) -> None:
        self._stable.resize(stable_s, now)
        self._panic.resize(panic_s, now)


def panic_window_s(stable_s: float, percent: float) -> float:
    """Length of the panic window: whole seconds, at least one."""
    return max(1.0, float(math.floor(stable_s * percent / 100 + 0.5)))


def _rounded(value: float) -> float:
    """To six decimals, halves away from zero."""
    scaled = value * _DIGITS
    whole = math.trunc(scaled)
    if abs(scaled - whole) >= 0.5:
        whole += 1 if scaled > 0 else -1
    return whole / _DIGITS
