"""Traces on the wire: W3C's traceparent header, and spans as OTLP's protobuf over HTTP has them.

Only what one proxy needs: ids, kinds, times, text and number attributes, an error status. In the specifications: W3C
Trace Context level 1, opentelemetry/proto/collector/trace/v1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from kserve_ext.wire.otlp import attribute, exported
from kserve_ext.wire.protobuf import fixed64, message, number, text

INTERNAL: Final = 1
SERVER: Final = 2
CLIENT: Final = 3

_ERROR: Final = 2
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ANY_LINE = re.compile(rb"\r\n(?i:traceparent):[^\r]*")


class Parent(NamedTuple):
    """Whose child a span is, and whether that one is recorded."""

    trace_id: bytes
    span_id: bytes
    sampled: bool


class Span(NamedTuple):
    trace_id: bytes
    span_id: bytes
    parent_id: bytes  # b"" = a root
    name: str
    kind: int
    start_ns: int  # since 1970
    end_ns: int
    attributes: Mapping[str, str | int] = {}
    error: bool = False


def parse_parent(value: bytes) -> Parent | None:
    """None: not a valid traceparent, which counts as none at all."""
    match = _PARENT.fullmatch(value.strip())
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5]):
        return None
    trace_id, span_id = bytes.fromhex(match[2].decode()), bytes.fromhex(match[3].decode())
    if not any(trace_id) or not any(span_id):
        return None
    return Parent(trace_id, span_id, bool(int(match[4], 16) & 1))


def format_parent(parent: Parent) -> bytes:
    ids = f"00-{parent.trace_id.hex()}-{parent.span_id.hex()}-{'01' if parent.sampled else '00'}"
    return ids.encode()


def with_parent(head: bytes, parent: Parent) -> bytes:
    """A checked head with this traceparent instead of the one it had."""
    return _ANY_LINE.sub(b"", head)[:-2] + b"Traceparent: " + format_parent(parent) + b"\r\n\r\n"


def sampled(trace_id: bytes, rate: float) -> bool:
    """Of so many traces, decided alike by everybody who looks at the id, as TraceIDRatioBased does."""
    return int.from_bytes(trace_id[8:], "big") >> 1 < int(rate * (1 << 63)) if rate < 1.0 else True


def encode(resource: Mapping[str, str], scope: str, spans: Iterable[Span]) -> bytes:
    """An ExportTraceServiceRequest."""
    return exported(resource, [(scope, [_span(span) for span in spans])])


def as_json(resource: Mapping[str, str], scope: str, span: Span) -> dict[str, Any]:
    """For people to read: named as OpenTelemetry's exporter to stdout has it in Go."""
    return {
        "Name": span.name,
        "SpanContext": {"TraceID": span.trace_id.hex(), "SpanID": span.span_id.hex()},
        "Parent": {"SpanID": (span.parent_id or bytes(8)).hex()},
        "SpanKind": span.kind,
        "StartTime": _time(span.start_ns),
        "EndTime": _time(span.end_ns),
        "Attributes": dict(span.attributes),
        "Status": {"Code": "Error" if span.error else "Unset"},
        "Resource": dict(resource),
        "InstrumentationScope": {"Name": scope},
    }


def _time(ns: int) -> str:
    seconds = datetime.fromtimestamp(ns // 10**9, UTC)
    return f"{seconds:%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"


def _span(span: Span) -> bytes:
    parts = [message(1, span.trace_id), message(2, span.span_id)]
    if span.parent_id:
        parts.append(message(4, span.parent_id))
    parts += (
        text(5, span.name),
        number(6, span.kind),
        fixed64(7, span.start_ns),
        fixed64(8, span.end_ns),
    )
    parts += (message(9, attribute(name, value)) for name, value in span.attributes.items())
    if span.error:
        parts.append(message(15, number(3, _ERROR)))
    return b"".join(parts)
