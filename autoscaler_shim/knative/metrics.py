"""The autoscaler's series in Prometheus' form, on port 9090: Knative's by their names, and a few of our own.

Knative's are those of scope knative.dev/serving/pkg/autoscaler, as its exporter spells them. They are read off the
deciders when somebody scrapes; nothing here runs on the way of a decision.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector as PrometheusCollector

from kserve_ext.kube.queue import Counters

PORT: Final = 9090
LABELS: Final = (
    "k8s_namespace_name",
    "kn_service_name",
    "kn_configuration_name",
    "kn_revision_name",
    "otel_scope_name",
)
SCOPE: Final = "knative.dev/serving/pkg/autoscaler"
QUEUE_SCOPE: Final = "knative.dev/pkg/observability/metrics/k8s"
BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class Series(NamedTuple):
    """One revision's numbers, by name, and whose they are."""

    namespace: str
    service: str
    configuration: str
    revision: str
    values: Mapping[str, float]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.namespace, self.service, self.configuration, self.revision, SCOPE


#: Name as exported, and what it says.
GAUGES: Final = {
    "kn_revision_pods_desired": "Number of pods the autoscaler wants to allocate",
    "kn_revision_capacity_excess": "Excess burst capacity observed over the stable window",
    "kn_revision_panic_mode": "If greater than 0 the autoscaler is in panic mode",
    "kn_revision_concurrency_stable": "Average of concurrency over the stable window",
    "kn_revision_concurrency_panic": "Average of concurrency over the panic window",
    "kn_revision_concurrency_target": "The desired concurrency of each pod",
    "kn_revision_rps_stable_per_second": "Average of requests per second over the stable window",
    "kn_revision_rps_panic_per_second": "Average of requests per second over the panic window",
    "kn_revision_rps_target_per_second": "The desired requests per second of each pod",
    "kn_revision_pods_requested": "Number of pods the autoscaler requested from Kubernetes",
    "kn_revision_pods_count": "Number of pods that are ready",
    "kn_revision_pods_not_ready_count": "Number of pods that are not ready",
    "kn_revision_pods_pending_count": "Number of pods that are pending",
    "kn_revision_pods_terminating_count": "Number of pods that are terminating",
}


class Owner(NamedTuple):
    """Whose scrapes are counted together: all revisions of one configuration."""

    namespace: str
    service: str
    configuration: str


class ScrapeTimes:
    """How long scrapes took."""

    def __init__(self) -> None:
        self._counts: dict[Owner, list[int]] = {}
        self._sums: dict[Owner, float] = {}

    def observe(self, owner: Owner, seconds: float) -> None:
        counts = self._counts.setdefault(owner, [0] * (len(BOUNDS) + 1))
        counts[bisect_left(BOUNDS, seconds)] += 1
        self._sums[owner] = self._sums.get(owner, 0.0) + seconds

    def family(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            "kn_autoscaler_scrape_duration_seconds",
            "The duration of scraping the revision",
            labels=("k8s_namespace_name", "kn_service_name", "kn_configuration_name", "otel_scope_name"),
        )
        for owner, counts in self._counts.items():
            total, buckets = 0, []
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric((*owner, SCOPE), buckets, self._sums[owner])
        return family


class Queue(NamedTuple):
    """A work queue, under the name that Knative's has."""

    name: str
    depth: int
    counters: Counters


def queue_families(queues: Sequence[Queue]) -> Iterator[Metric]:
    labels = ("name", "otel_scope_name")
    depth = GaugeMetricFamily("kn_workqueue_depth", "Number of current items in the queue", labels=labels)
    adds = CounterMetricFamily("kn_workqueue_adds", "Number of items added to the queue", labels=labels)
    retries = CounterMetricFamily(
        "kn_workqueue_retries", "Number of items re-added to the queue", labels=labels
    )
    for queue in queues:
        which = (queue.name, QUEUE_SCOPE)
        depth.add_metric(which, queue.depth)
        adds.add_metric(which, queue.counters.added)
        retries.add_metric(which, queue.counters.failures)
    yield from (depth, adds, retries)


class Exposition(PrometheusCollector):
    def __init__(
        self,
        series: Callable[[], list[Series]],
        times: ScrapeTimes,
        queues: Callable[[], list[Queue]],
        counters: Callable[[], Mapping[str, float]],
    ) -> None:
        """`counters`: our own, by name without the prefix."""
        self._series = series
        self._times = times
        self._queues = queues
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        found = self._series()
        for name, what in GAUGES.items():
            family = GaugeMetricFamily(name, what, labels=LABELS)
            for series in found:
                if name in series.values:
                    family.add_metric(series.labels, series.values[name])
            if family.samples:
                yield family
        yield self._times.family()
        yield from queue_families(self._queues())
        for name, value in self._counters().items():
            yield CounterMetricFamily(f"galaxy_autoscaler_{name}", name.replace("_", " "), value)
