"""How long something took, counted in the buckets that OpenTelemetry's conventions name for durations of HTTP.

Cumulative since it was made, as Prometheus reads it; it neither measures nor exports. Knative has the same bounds for
its work queues and its scrapes: observability/metrics/k8s/workqueue.go of knative.dev/pkg.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class Histogram:
    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound and number of all up to it; the last one has them all."""
        total = 0
        found: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found
