"""Tells the autoscaler how much of each revision's traffic is here: every second, and at once when it begins.

The first request of a quiet revision is told before it is placed, so that scaling from zero doesn't wait for the
second. What is told is state: a report that is lost is made good by the next one, and a sink that is connected again
gets one at once. In Knative: pkg/activator/handler/concurrency_reporter.go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kserve_ext.core.knative.request_stats import RequestStats
from kserve_ext.wire.stats import Stat, StatMessage, encode

PERIOD_S = 1.0


class Reported(Protocol):
    """A revision, as far as reports go."""

    stats: RequestStats | None  # None: it is quiet
    concurrency: float  # as last reported

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...


class Reporter:
    def __init__(self, pod_name: str, send: Callable[[bytes], bool]) -> None:
        """`send` says whether it took the message."""
        self._pod_name = pod_name
        self._send = send
        self._live: dict[Reported, None] = {}

    def first(self, part: Reported, now: float) -> RequestStats:
        """A quiet revision gets a request: says so, and begins to count."""
        told = self._tell([self._message(part, 1.0, 1.0)])
        stats = part.stats = RequestStats(now, told)
        self._live[part] = None
        return stats

    def report(self, now: float) -> None:
        """Called each period."""
        messages = []
        for part in list(self._live):
            stats = part.stats
            if stats is None:
                continue
            report = stats.report(now)
            part.concurrency = report.concurrency
            messages.append(self._message(part, report.concurrency, report.arrivals))
            if report.quiet and not stats.under_way:
                part.stats = None
                del self._live[part]
        if messages:
            self._tell(messages)

    def _message(self, part: Reported, concurrency: float, count: float) -> StatMessage:
        stat = Stat(self._pod_name, average_concurrent_requests=concurrency, request_count=count)
        return StatMessage(part.namespace, part.name, stat)

    def _tell(self, messages: Sequence[StatMessage]) -> bool:
        return self._send(encode(messages))
