"""traceparent, sampling, and spans as OpenTelemetry's own protobuf classes read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from kserve_ext.wire.traces import (
    CLIENT,
    SERVER,
    Parent,
    Span,
    encode,
    format_parent,
    parse_parent,
    sampled,
    with_parent,
)

TRACE, SPAN = bytes(range(16)), bytes(range(1, 9))
TEXT = b"00-000102030405060708090a0b0c0d0e0f-0102030405060708-01"


@pytest.mark.parametrize(
    ("value", "parent"),
    [
        (TEXT, Parent(TRACE, SPAN, True)),
        (b" " + TEXT[:-2] + b"00 ", Parent(TRACE, SPAN, False)),
        (b"cc" + TEXT[2:] + b"-more", Parent(TRACE, SPAN, True)),
        (TEXT + b"-more", None),
        (b"ff" + TEXT[2:], None),
        (TEXT.upper(), None),
        (b"00-" + b"0" * 32 + TEXT[35:], None),
        (TEXT[:36] + b"0" * 16 + b"-01", None),
        (b"", None),
    ],
)
def test_parse_parent(value: bytes, parent: Parent | None) -> None:
    assert parse_parent(value) == parent


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.booleans())
def test_what_is_written_is_read(trace_id: bytes, span_id: bytes, is_sampled: bool) -> None:
    parent = Parent(trace_id, span_id, is_sampled)
    assert parse_parent(format_parent(parent)) == (parent if any(trace_id) and any(span_id) else None)


@given(st.binary(min_size=16, max_size=16), st.floats(0.0, 1.0))
def test_sampled_decides_by_the_id_alone(trace_id: bytes, rate: float) -> None:
    assert sampled(trace_id, 1.0)
    assert not sampled(trace_id, 0.0)
    if sampled(trace_id, rate):
        assert sampled(trace_id, min(1.0, rate * 1.5))


def test_the_rate_is_the_share_that_opentelemetry_takes() -> None:
    """Its Python package looks at another bit, so that shares are compared, not traces."""
    ids = [(n * 0x9E3779B97F4A7C15) % (1 << 64) for n in range(1, 2001)]
    theirs = TraceIdRatioBased(0.25)
    ours = sum(sampled(bytes(8) + n.to_bytes(8, "big"), 0.25) for n in ids)
    assert abs(ours - sum(n < theirs.bound for n in ids)) < 20


def test_a_head_with_another_parent() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nTRACEPARENT: old\r\nB: c\r\ntraceparent:x\r\n\r\n"
    assert with_parent(head, Parent(TRACE, SPAN, True)) == (
        b"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\nTraceparent: " + TEXT + b"\r\n\r\n"
    )


def test_spans_as_others_read_them() -> None:
    spans = [
        Span(TRACE, SPAN, b"", "handle", SERVER, 1_700_000_000_000_000_001, 1_700_000_001_000_000_002,
             {"http.request.method": "GET", "http.response.status_code": 503}, True),
        Span(TRACE, SPAN[::-1], SPAN, "ünï", CLIENT, 1, 2),
    ]  # fmt: skip
    read = ExportTraceServiceRequest.FromString(encode({"service.name": "activator"}, "scope", spans))
    [resource] = read.resource_spans
    assert [(a.key, a.value.string_value) for a in resource.resource.attributes] == [
        ("service.name", "activator")
    ]
    [scope] = resource.scope_spans
    assert scope.scope.name == "scope"
    first, second = scope.spans
    assert (first.trace_id, first.span_id, first.parent_span_id) == (TRACE, SPAN, b"")
    assert (first.name, first.kind) == ("handle", SERVER)
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (spans[0].start_ns, spans[0].end_ns)
    assert [(a.key, a.value.string_value or a.value.int_value) for a in first.attributes] == [
        ("http.request.method", "GET"),
        ("http.response.status_code", 503),
    ]
    assert first.status.code == 2
    assert (second.name, second.kind, second.parent_span_id, second.status.code) == ("ünï", CLIENT, SPAN, 0)


def test_no_spans() -> None:
    assert not ExportTraceServiceRequest.FromString(encode({}, "", [])).resource_spans[0].scope_spans[0].spans
