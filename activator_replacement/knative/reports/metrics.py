"""Knative's metrics of an activator, in Prometheus' form and under the names its OpenTelemetry exporter gives them.

Read when scraped; nothing here runs on the request path. In Knative: pkg/activator/metrics.go, pkg/activator/handler/
metrics.go; names with a dot become names with an underscore.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from activator_replacement.knative.dispatcher import Dispatcher
from activator_replacement.knative.reports.stat_sink import StatSink
from kserve_ext.telemetry.metrics import SCOPE_LABEL

_REVISION = ["kn_service_name", "kn_configuration_name", "kn_revision_name", "k8s_namespace_name"]
_PLACE = ["k8s_namespace_name", "kn_revision_name"]
_PEER = ["peer", SCOPE_LABEL]
_SCOPE: Final = "knative.dev/serving/pkg/activator"
_HTTP_SCOPE: Final = "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"


class ActivatorCollector(Collector):
    def __init__(self, dispatcher: Dispatcher, sink: StatSink) -> None:
        self._dispatcher = dispatcher
        self._sink = sink

    def collect(self) -> Iterator[Metric]:
        concurrency = GaugeMetricFamily(
            "kn_revision_request_concurrency",
            "Concurrent requests that are routed to Activator",
            labels=[*_REVISION, SCOPE_LABEL],
        )
        queued = GaugeMetricFamily(
            "kn_revision_request_queued", "Requests held until a pod has a free slot.", labels=_PLACE
        )
        active = GaugeMetricFamily(
            "kn_revision_request_active", "Requests sent to pods and not done.", labels=_PLACE
        )
        capacity = GaugeMetricFamily(
            "galaxy_revision_capacity", "Requests that may be in flight from here.", labels=_PLACE
        )
        durations = HistogramMetricFamily(
            "http_server_request_duration_seconds",
            "Duration of HTTP server requests.",
            labels=[
                "http_request_method",
                "http_response_status_code",
                "network_protocol_name",
                "network_protocol_version",
                *_REVISION,
                SCOPE_LABEL,
            ],
        )
        for part in self._dispatcher.parts.values():
            facts, activation = part.facts, part.activation
            revision = [facts.service, facts.configuration, facts.name, facts.namespace]
            if part.stats is not None or activation.assigned:
                place = [facts.namespace, facts.name]
                concurrency.add_metric([*revision, _SCOPE], part.concurrency)
                queued.add_metric(place, activation.held)
                active.add_metric(place, activation.in_flight)
                capacity.add_metric(place, activation.capacity)
            for key in sorted(part.durations.by):
                buckets, total = part.durations.buckets(key)
                method, status, version = key
                labels = [method.decode(), str(status), "http", version, *revision, _HTTP_SCOPE]
                durations.add_metric(labels, buckets, total)
        yield from (concurrency, queued, active, capacity, durations)
        reachable = GaugeMetricFamily(
            "kn_activator_stats_conn_reachable",
            "Whether a peer is reachable from the activator (1 = reachable, 0 = not reachable)",
            labels=_PEER,
        )
        reachable.add_metric(["autoscaler", _SCOPE], float(self._sink.reachable))
        errors = CounterMetricFamily(
            "kn_activator_stats_conn_errors",
            "Number of connection errors from the activator",
            labels=_PEER,
        )
        errors.add_metric(["autoscaler", _SCOPE], self._sink.errors)
        yield from (reachable, errors)
        yield from self._shared()
        yield GaugeMetricFamily(
            "galaxy_held_bytes", "Bytes of all held requests.", self._dispatcher.held_bytes
        )
        tracer = self._dispatcher.tracer
        yield CounterMetricFamily(
            "galaxy_spans_dropped",
            "Spans that no collector took.",
            tracer.dropped if tracer is not None else 0,
        )
        yield CounterMetricFamily(
            "galaxy_reports_dropped", "Reports that could not be sent.", self._sink.dropped
        )

    def _shared(self) -> Iterator[Metric]:
        """Slots that activators of ours lend each other."""
        sharing = self._dispatcher.sharing
        home = GaugeMetricFamily(
            "galaxy_revision_home",
            "1 where this activator lends the revision's slots out at the moment.",
            labels=_PLACE,
        )
        leased = GaugeMetricFamily(
            "galaxy_revision_leased_slots",
            "Requests that may be in flight from here because the revision's home says so.",
            labels=_PLACE,
        )
        lent = GaugeMetricFamily(
            "galaxy_revision_lent_slots",
            "As home: slots that activators may use beyond those that are theirs by position.",
            labels=_PLACE,
        )
        for part in self._dispatcher.parts.values():
            if sharing is not None and part.shard is not None and part.shard.grants is not None:
                place = [part.namespace, part.name]
                figures = sharing.figures(part.facts.key)
                home.add_metric(place, float(figures.home not in ("", *sharing.others)))
                leased.add_metric(place, figures.leased)
                lent.add_metric(place, figures.lent)
        others = len(sharing.others) if sharing is not None else 0
        yield from (home, leased, lent)
        yield GaugeMetricFamily("galaxy_activators", "Other activators that slots are shared with.", others)
