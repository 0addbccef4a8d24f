"""Metrics that are pushed: what a collector reads of them, over each protocol, and that an ill one costs nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector as Source
from yarl import URL

from kserve_ext.api.knative.observability import Metrics, Observability
from kserve_ext.telemetry import grpc
from kserve_ext.telemetry.collector import Collector
from kserve_ext.telemetry.metrics import named
from kserve_ext.telemetry.target import Target
from kserve_ext.telemetry.telemetry import Telemetry, resource
from tests.support.certificates import Authority
from tests.support.dataplane import run
from tests.telemetry.collectors import Sent, over_grpc, over_http

GRPC_PATH = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


class Families(Source):
    def collect(self) -> Iterator[Family]:
        gauge = GaugeMetricFamily(
            "kn_revision_pods_desired", "Wanted.", labels=["kn_revision_name", "otel_scope_name"]
        )
        gauge.add_metric(["a", "knative.dev/x"], 3)
        counter = CounterMetricFamily("galaxy_spans_dropped", "Dropped.", 2)
        times = HistogramMetricFamily(
            "http_server_request_duration_seconds", "Took.", labels=["http_response_status_code"]
        )
        times.add_metric(["200"], [("0.1", 1), ("1.0", 1), ("+Inf", 4)], 9.5)
        yield from (gauge, counter, times)
        yield from Target({"service.name": "activator"}).collect()


@pytest.mark.parametrize(
    ("prometheus", "opentelemetry"),
    [
        ("kn_revision_pods_not_ready_count", ("kn.revision.pods.not_ready.count", "")),
        ("kn_revision_rps_stable_per_second", ("kn.revision.rps.stable", "{request}/s")),
        ("http_server_request_duration_seconds", ("http.server.request.duration", "s")),
        ("galaxy_held_bytes", ("galaxy.held", "By")),
        ("kn_workqueue_depth", ("kn.workqueue.depth", "")),
        (
            "kn_k8s_client_http_response_status_code",
            ("kn.k8s.client.http.response.status_code", ""),
        ),
        ("kn_workqueue_process_duration_seconds", ("kn.workqueue.process.duration", "s")),
        ("kn_workqueue_unfinished_work_seconds", ("kn.workqueue.unfinished_work", "s")),
        ("kn_workqueue_longest_running_processor_seconds", ("kn.workqueue.longest_running_processor", "s")),
    ],
)
def test_names(prometheus: str, opentelemetry: tuple[str, str]) -> None:
    assert named(prometheus) == opentelemetry


def test_what_is_pushed_is_read_over_either_protocol_and_again_after_a_change() -> None:
    async def scenario() -> None:
        telemetry = Telemetry(Families(), resource("activator", "act-0", "knative-serving"), 0)
        try:
            ways: list[tuple[str, str, AbstractAsyncContextManager[Sent]]] = [
                ("http/protobuf", "/v1/metrics", over_http()),
                ("grpc", GRPC_PATH, over_grpc()),
            ]
            for protocol, path, way in ways:
                async with way as sent:
                    telemetry.apply(Observability(metrics=Metrics(protocol, sent.url, 0.01)))
                    came, body = await sent.next()
                    assert came == path
                    check(ExportMetricsServiceRequest.FromString(body))
                    telemetry.apply(Observability())
        finally:
            await telemetry.stop()

    run(scenario())


def check(export: ExportMetricsServiceRequest) -> None:
    (sender,) = export.resource_metrics
    attributes = {a.key: a.value.string_value for a in sender.resource.attributes}
    assert attributes["service.name"] == "activator"
    scopes = {scope.scope.name: {m.name: m for m in scope.metrics} for scope in sender.scope_metrics}
    gauge = scopes["knative.dev/x"]["kn.revision.pods.desired"]
    (point,) = gauge.gauge.data_points
    assert point.as_double == 3
    assert [(a.key, a.value.string_value) for a in point.attributes] == [("kn.revision.name", "a")]
    ours = scopes["kserve-galaxy"]
    assert set(ours) == {
        "galaxy.spans.dropped",
        "http.server.request.duration",
    }  # the resource says who it is
    assert ours["galaxy.spans.dropped"].sum.data_points[0].as_double == 2
    (times,) = ours["http.server.request.duration"].histogram.data_points
    assert list(times.bucket_counts) == [1, 0, 3]
    assert list(times.explicit_bounds) == [0.1, 1.0]
    assert (times.count, times.sum) == (4, 9.5)
    assert [(a.key, a.value.string_value) for a in times.attributes] == [("http.response.status_code", "200")]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_takes_nothing_is_named_once(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with over_grpc() if protocol == "grpc" else over_http() as sent:
            sent.status = "14"
            collector = Collector("metrics", protocol, sent.url)
            assert not await collector.take(b"")
            assert not await collector.take(b"")
            assert len(caplog.records) == 1
            assert ("status 14: not now" if protocol == "grpc" else "answered 503") in caplog.text
            sent.status = "0"
            assert await collector.take(b"")

    with caplog.at_level(logging.WARNING):
        run(scenario())


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_password_is_in_no_log_and_in_no_authority(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with over_grpc() if protocol == "grpc" else over_http() as sent:
            sent.status = "14"
            collector = Collector("metrics", protocol, sent.url.replace("//", "//me:secret@"))
            assert not await collector.take(b"")
            assert sent.authority == (sent.url.removeprefix("http://") if protocol == "grpc" else "")
            assert sent.url in caplog.text

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert "secret" not in caplog.text


def test_nobody_there_and_nobody_who_speaks_grpc(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        assert not await Collector("traces", "grpc", "http://127.0.0.1:1").take(b"")
        async with over_http() as sent:
            assert not await Collector("traces", "grpc", sent.url).take(b"")

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert "http://127.0.0.1:1" in caplog.text
    assert "does not speak gRPC" in caplog.text


def test_grpc_over_tls(tmp_path: Path) -> None:
    authority = Authority()

    async def scenario() -> None:
        server = authority.server(tmp_path, "localhost")
        server.set_alpn_protocols(["h2"])
        async with over_grpc(server) as sent:
            problem = await grpc.call(URL(sent.url), GRPC_PATH, b"export", authority.client())
            assert problem == ""
            assert await sent.next() == (GRPC_PATH, b"export")

    run(scenario())


def test_a_source_that_fails_ends_no_later_push(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Families):
        faults = 1

        def collect(self) -> Iterator[Family]:
            if self.faults:
                self.faults -= 1
                raise RuntimeError("of the source")
            yield from super().collect()

    async def scenario() -> None:
        async with over_http() as sent:
            telemetry = Telemetry(Failing(), {}, 0)
            telemetry.apply(Observability(metrics=Metrics("http/protobuf", sent.url, 0.01)))
            await sent.next()
            await telemetry.stop()

    run(scenario())
    assert "metrics could not be pushed" in caplog.text
