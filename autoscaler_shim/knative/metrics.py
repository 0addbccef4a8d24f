"""The autoscaler's series in Prometheus' form, on port 9090: Knative's by their names, and a few of our own.

Knative's are those of scope knative.dev/serving/pkg/autoscaler, as its exporter spells them. They are read off the
deciders when somebody scrapes; nothing here runs on the way of a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector as PrometheusCollector

from kserve_ext.core.histogram import Histogram
from kserve_ext.kube.queue import Counters
from kserve_ext.telemetry.metrics import K8S_SCOPE, SCOPE_LABEL

PORT: Final = 9090
LABELS: Final = (
    "k8s_namespace_name",
    "kn_service_name",
    "kn_configuration_name",
    "kn_revision_name",
    SCOPE_LABEL,
)
SCOPE: Final = "knative.dev/serving/pkg/autoscaler"


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
        self._of: dict[Owner, Histogram] = {}

    def observe(self, owner: Owner, seconds: float) -> None:
        self._of.setdefault(owner, Histogram()).observe(seconds)

    def family(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            "kn_autoscaler_scrape_duration_seconds",
            "The duration of scraping the revision",
            labels=("k8s_namespace_name", "kn_service_name", "kn_configuration_name", SCOPE_LABEL),
        )
        for owner, took in self._of.items():
            family.add_metric((*owner, SCOPE), took.buckets, took.sum_s)
        return family


class Queue(NamedTuple):
    """A work queue, under the name that Knative's has."""

    name: str
    depth: int
    counters: Counters
    running_s: Sequence[float]


def queue_families(queues: Sequence[Queue]) -> Iterator[Metric]:
    labels = ("name", SCOPE_LABEL)
    depth = GaugeMetricFamily("kn_workqueue_depth", "Number of current items in the queue", labels=labels)
    adds = CounterMetricFamily("kn_workqueue_adds", "Number of items added to the queue", labels=labels)
    retries = CounterMetricFamily(
        "kn_workqueue_retries", "Number of items re-added to the queue", labels=labels
    )
    waited = HistogramMetricFamily(
        "kn_workqueue_queue_duration_seconds", "How long an item stays in workqueue", labels=labels
    )
    ran = HistogramMetricFamily(
        "kn_workqueue_process_duration_seconds", "How long an item is worked on", labels=labels
    )
    unfinished = GaugeMetricFamily(
        "kn_workqueue_unfinished_work_seconds", "Of all runs under way, so far, together", labels=labels
    )
    longest = GaugeMetricFamily(
        "kn_workqueue_longest_running_processor_seconds", "Of the longest run under way", labels=labels
    )
    for queue in queues:
        which = (queue.name, K8S_SCOPE)
        depth.add_metric(which, queue.depth)
        adds.add_metric(which, queue.counters.added)
        retries.add_metric(which, queue.counters.failures)
        waited.add_metric(which, queue.counters.waited.buckets, queue.counters.waited.sum_s)
        ran.add_metric(which, queue.counters.ran.buckets, queue.counters.ran.sum_s)
        unfinished.add_metric(which, sum(queue.running_s))
        longest.add_metric(which, max(queue.running_s, default=0.0))
    yield from (depth, adds, retries, waited, ran, unfinished, longest)


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
