"""What is known of one revision's load: the windows of both metrics, filled by activators and by scraping.

Matches the collection of pkg/autoscaler/metrics/collector.go. Whether nothing heard means "no load" or "no data"
depends on whether the revision is scraped: without scraping every request goes by way of an activator, whose
silence is an answer. `now` is unix time here, since activators put seconds of it into their reports. Asks nobody.
"""

from __future__ import annotations

from typing import Final, Literal

from kserve_ext.core.knative.sampling import Load
from kserve_ext.core.scaling.window import Algorithm, Averages, MetricWindows

Metric = Literal["concurrency", "rps"]

#: More in one report is no load but a mistake, and would overflow what is computed from it.
MOST: Final = 1e9


class Collection:
    __slots__ = ("_concurrency", "_rps", "scraped", "stable_s")

    def __init__(self, stable_s: float, panic_s: float, algorithm: Algorithm, scraped: bool) -> None:
        self.stable_s = stable_s
        self.scraped = scraped
        self._concurrency = MetricWindows(stable_s, panic_s, algorithm)
        self._rps = MetricWindows(stable_s, panic_s, algorithm)

    def configure(self, stable_s: float, panic_s: float, scraped: bool, now: float) -> None:
        """The algorithm stays: it can't be changed on a revision."""
        self.stable_s = stable_s
        self.scraped = scraped
        self._concurrency.resize(stable_s, panic_s, now)
        self._rps.resize(stable_s, panic_s, now)

    def record(self, load: Load, at: float) -> bool:
        """False: a number that would spoil every average it is part of; nothing was recorded."""
        if not (-MOST <= load.concurrency <= MOST and -MOST <= load.requests <= MOST):  # NaN is not, either
            return False
        self._concurrency.record(at, load.concurrency)
        self._rps.record(at, load.requests)
        return True

    def averages(self, metric: Metric, now: float) -> Averages | None:
        """None: nobody knows."""
        windows = self._rps if metric == "rps" else self._concurrency
        if self.scraped and windows.empty(now):
            return None
        return windows.averages(now)
