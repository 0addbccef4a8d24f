"""Metrics as OTLP's protobuf has them: gauges, sums that only grow, and histograms with bounds of their own.

Everything is cumulative since the process began, as Prometheus reads it and as OpenTelemetry's exporters send it
unless told otherwise. In the specification: opentelemetry/proto/metrics/v1, collector/metrics/v1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from kserve_ext.wire.otlp import attribute, exported
from kserve_ext.wire.protobuf import double, fixed64, message, number, packed_double, packed_fixed64, text

_CUMULATIVE: Final = 2


class Form(IntEnum):
    """Numbers of the fields of a Metric that hold its data."""

    GAUGE = 5
    SUM = 7
    HISTOGRAM = 9


class Point(NamedTuple):
    attributes: Mapping[str, str]
    value: float  # of a histogram, the sum
    #: Of a histogram: how many fell between each bound and the one before; one more than there are bounds.
    counts: Sequence[int] = ()
    bounds: Sequence[float] = ()


class Metric(NamedTuple):
    name: str
    description: str
    unit: str
    form: Form
    points: Sequence[Point]


def encode(
    resource: Mapping[str, str], scopes: Mapping[str, Sequence[Metric]], began_ns: int, now_ns: int
) -> bytes:
    """An ExportMetricsServiceRequest; times since 1970."""
    return exported(
        resource,
        [
            (scope, [_metric(metric, began_ns, now_ns) for metric in metrics])
            for scope, metrics in scopes.items()
        ],
    )


def _metric(metric: Metric, began_ns: int, now_ns: int) -> bytes:
    point = _histogram_point if metric.form == Form.HISTOGRAM else _number_point
    data = b"".join(message(1, point(found, began_ns, now_ns)) for found in metric.points)
    if metric.form != Form.GAUGE:
        data += number(2, _CUMULATIVE)
    if metric.form == Form.SUM:
        data += number(3, 1)  # it only grows
    return (
        text(1, metric.name) + text(2, metric.description) + text(3, metric.unit) + message(metric.form, data)
    )


def _number_point(point: Point, began_ns: int, now_ns: int) -> bytes:
    attributes = b"".join(message(7, attribute(*pair)) for pair in point.attributes.items())
    return fixed64(2, began_ns) + fixed64(3, now_ns) + double(4, point.value) + attributes


def _histogram_point(point: Point, began_ns: int, now_ns: int) -> bytes:
    return b"".join(
        (
            fixed64(2, began_ns),
            fixed64(3, now_ns),
            fixed64(4, sum(point.counts)),
            double(5, point.value),
            packed_fixed64(6, point.counts),
            packed_double(7, point.bounds),
            *(message(9, attribute(*pair)) for pair in point.attributes.items()),
        )
    )
