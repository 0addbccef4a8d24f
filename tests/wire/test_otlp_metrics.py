"""Metrics on the wire, read back by OpenTelemetry's own messages."""

from __future__ import annotations

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from kserve_ext.wire.otlp_metrics import Form, Metric, Point, encode


def test_every_form_is_read_back_by_opentelemetry() -> None:
    gauge = Metric("pods", "Pods.", "{pod}", Form.GAUGE, [Point({"ns": "a"}, 2.5), Point({"ns": "b"}, -1)])
    total = Metric("errors", "Errors.", "", Form.SUM, [Point({}, 7)])
    times = Metric("took", "Took.", "s", Form.HISTOGRAM, [Point({"k": "v"}, 3.5, [1, 0, 2], [0.1, 1.0])])
    encoded = encode({"service.name": "x"}, {"one": [gauge, total], "two": [times]}, 10, 20)

    (resource,) = ExportMetricsServiceRequest.FromString(encoded).resource_metrics
    assert [(a.key, a.value.string_value) for a in resource.resource.attributes] == [("service.name", "x")]
    first, second = resource.scope_metrics
    assert (first.scope.name, second.scope.name) == ("one", "two")
    pods, errors = first.metrics
    assert (pods.name, pods.description, pods.unit) == ("pods", "Pods.", "{pod}")
    assert [point.as_double for point in pods.gauge.data_points] == [2.5, -1.0]
    assert [point.attributes[0].value.string_value for point in pods.gauge.data_points] == ["a", "b"]
    assert errors.sum.is_monotonic
    assert errors.sum.aggregation_temporality == 2
    assert errors.sum.data_points[0].as_double == 7
    (took,) = second.metrics
    assert took.histogram.aggregation_temporality == 2
    (point,) = took.histogram.data_points
    assert (point.count, point.sum) == (3, 3.5)
    assert list(point.bucket_counts) == [1, 0, 2]
    assert list(point.explicit_bounds) == [0.1, 1.0]
    assert (point.start_time_unix_nano, point.time_unix_nano) == (10, 20)
