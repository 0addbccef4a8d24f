"""What a pod tells the autoscaler's scraper: requests under way averaged over the last second, and arrivals.

Those that came through an activator are in both totals and counted apart, so that nothing is counted twice. In
Knative: networking's pkg/http/stats/request.go.

Hot dialect: slots, a few additions per request.
"""

from __future__ import annotations

from typing import NamedTuple


class Report(NamedTuple):
    concurrency: float = 0.0
    proxied_concurrency: float = 0.0
    arrivals: float = 0.0
    proxied_arrivals: float = 0.0


class RequestStats:
    __slots__ = (
        "_area",
        "_arrivals",
        "_at",
        "_proxied",
        "_proxied_area",
        "_proxied_arrivals",
        "_since",
        "under_way",
    )

    def __init__(self, now: float) -> None:
        self.under_way = 0
        self._proxied = 0  # of these
        self._at = self._since = now
        self._area = self._proxied_area = 0.0
        self._arrivals = self._proxied_arrivals = 0

    def enter(self, now: float, proxied: bool) -> None:
        self._move(now)
        self.under_way += 1
        self._arrivals += 1
        if proxied:
            self._proxied += 1
            self._proxied_arrivals += 1

    def leave(self, now: float, proxied: bool) -> None:
        self._move(now)
        self.under_way -= 1
        if proxied:
            self._proxied -= 1

    def report(self, now: float) -> Report:
        """The time since the last report."""
        self._move(now)
        elapsed = now - self._since
        over = 1.0 / elapsed if elapsed > 0 else 0.0
        report = Report(self._area * over, self._proxied_area * over, self._arrivals, self._proxied_arrivals)
        self._since = now
        self._area = self._proxied_area = 0.0
        self._arrivals = self._proxied_arrivals = 0
        return report

    def _move(self, now: float) -> None:
        passed = now - self._at
        if passed > 0:
            self._area += self.under_way * passed
            self._proxied_area += self._proxied * passed
            self._at = now
