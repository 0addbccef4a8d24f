"""What the webhook counts: reviews by what they were about and what became of them, how long they took."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kserve_ext.api.admission import Answer, Request
from kserve_ext.kube.certificates import end_of

_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0, 5.0)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._reviews = Counter(
            "galaxy_webhook_reviews",
            "Reviews answered, by outcome: untouched, warned, patched, denied or malformed",
            ("door", "kind", "operation", "outcome"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "galaxy_webhook_review_seconds",
            "From the last byte of a review to its answer",
            ("door",),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._end = Gauge(
            "galaxy_webhook_certificate_end_seconds",
            "When the certificate that is shown ends, in unix time",
            registry=self._registry,
        )

    def answered(self, door: str, asked: Request, answer: Answer, seconds: float) -> None:
        self._reviews.labels(door, asked.kind, asked.operation, answer.outcome).inc()
        self._seconds.labels(door).observe(seconds)

    def malformed(self, door: str) -> None:
        self._reviews.labels(door, "", "", "malformed").inc()

    def certificate(self, shown: bytes) -> None:
        end = end_of(shown)
        self._end.set(end.timestamp() if end else 0)

    def text(self) -> bytes:
        return generate_latest(self._registry)
