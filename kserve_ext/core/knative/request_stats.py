"""What an activator reports of one revision: requests under way averaged over time, and arrivals, period by period.

Held requests and upgraded connections count as under way. A revision that was quiet is told about with its first
request, as concurrency 1 and count 1; the next period's report leaves that request out, and after a period in which
nothing was under way the revision is quiet again. In Knative: pkg/activator/handler/concurrency_reporter.go,
networking's pkg/http/stats/request.go.

Hot dialect: slots, a few additions per request.
"""

from __future__ import annotations

from typing import NamedTuple


class Report(NamedTuple):
    concurrency: float
    arrivals: float
    quiet: bool  # nothing was under way in the whole period


class RequestStats:
    """One revision from the first request after it was quiet."""

    __slots__ = ("_area", "_at", "_count", "_since", "_told", "under_way")

    def __init__(self, now: float, told: bool = True) -> None:
        """`told`: its first request was; else the next report has it."""
        self.under_way = 0
        self._at = now
        self._since = now
        self._area = 0.0
        self._count = 0
        self._told = 1.0 if told else 0.0  # reported already

    def enter(self, now: float) -> None:
        self._area += self.under_way * (now - self._at)
        self._at = now
        self.under_way += 1
        self._count += 1

    def leave(self, now: float) -> None:
        self._area += self.under_way * (now - self._at)
        self._at = now
        self.under_way -= 1

    def report(self, now: float) -> Report:
        """The period since the last report, or since the beginning."""
        self._area += self.under_way * (now - self._at)
        self._at = now
        elapsed = now - self._since
        average = self._area / elapsed if elapsed > 0 else 0.0
        report = Report(max(0.0, average - self._told), self._count - self._told, average == 0.0)
        self._since = now
        self._area = 0.0
        self._count = 0
        self._told = 0.0
        return report
