"""The data plane's counters in Prometheus' form, read when scraped; nothing here runs on the request path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from activator_replacement.plane import BUCKETS_S, Plane
from activator_replacement.seam import OUTCOMES


class PlaneCollector(Collector):
    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def collect(self) -> Iterator[Metric]:
        plane = self._plane
        counters = plane.counters
        yield GaugeMetricFamily("galaxy_client_connections", "Open client connections.", len(plane.clients))
        yield GaugeMetricFamily(
            "galaxy_exchanges_active",
            "Requests held or in flight.",
            sum(client.active for client in plane.clients),
        )
        yield GaugeMetricFamily(
            "galaxy_upstream_connections_idle", "Connections kept for instances.", plane.cache.idle_count
        )
        yield GaugeMetricFamily(
            "galaxy_upstream_connections_http2",
            "Connections to instances over HTTP/2.",
            plane.http2_cache.open_count,
        )
        yield CounterMetricFamily(
            "galaxy_upstream_connections_opened",
            "Connections opened to instances.",
            plane.cache.opened + plane.http2_cache.opened,
        )
        yield CounterMetricFamily(
            "galaxy_upstream_connections_reused",
            "Requests sent on a kept connection.",
            plane.cache.reused + plane.http2_cache.reused,
        )
        yield CounterMetricFamily(
            "galaxy_upstream_retries",
            "Requests sent again because a kept connection was closed.",
            counters.retried,
        )
        yield CounterMetricFamily(
            "galaxy_streams_continued",
            "Streams that another instance went on with in the middle, each time.",
            counters.continued,
        )
        yield CounterMetricFamily(
            "galaxy_streams_not_continued",
            "Streams that could have been continued and ended with an error event.",
            counters.not_continued,
        )
        yield GaugeMetricFamily(
            "galaxy_kept_body_bytes",
            "Request bodies that are kept for continuing their streams.",
            plane.kept_bytes,
        )
        yield CounterMetricFamily(
            "galaxy_connections_accepted", "Client connections accepted.", counters.accepted
        )
        yield CounterMetricFamily(
            "galaxy_connections_refused", "Client connections over the limit.", counters.refused_connections
        )
        yield CounterMetricFamily("galaxy_requests", "Requests whose head was read.", counters.requests)
        responses = CounterMetricFamily("galaxy_responses", "Response heads by status.", labels=["status"])
        for status, count in sorted(counters.responses.items()):
            responses.add_metric([str(status)], count)
        yield responses
        outcomes = CounterMetricFamily(
            "galaxy_exchange_outcomes", "Ends of requests that were sent to an instance.", labels=["outcome"]
        )
        for outcome, count in zip(OUTCOMES, counters.outcomes, strict=True):
            outcomes.add_metric([outcome], count)
        yield outcomes
        total = 0
        buckets = []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counters.first_byte_buckets, strict=True):
            total += count
            buckets.append((bound, total))
        yield HistogramMetricFamily(
            "galaxy_time_to_response_head_seconds",
            "From the request's head to the response's, holding included.",
            buckets=buckets,
            sum_value=counters.first_byte_sum_s,
        )


class ConnectionCollector(Collector):
    """Connections of this process to other functions and nodes (kserve_ext/core/connection_cache.py)."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        yield GaugeMetricFamily("galaxy_rpc_connections_kept", "Kept to other parts.", counts["kept"])
        yield GaugeMetricFamily("galaxy_rpc_connections_accepted", "Of other parts.", counts["accepted"])
        for name, what in (
            ("hits", "Calls on a kept connection."),
            ("misses", "Calls that had to connect first."),
            ("dials", "Connections opened, ahead of calls or for them."),
            ("evictions", "Connections closed because others were used more lately."),
            ("pings", "Questions on connections on which nothing came."),
            ("dead", "Connections given up because nothing came, not even the answer to a ping."),
            ("repeated", "Requests given to a new connection, not written on one that died."),
        ):
            yield CounterMetricFamily(f"galaxy_rpc_connection_{name}", what, counts[name])
