"""Traces on the wire: W3C's traceparent header, and spans as OTLP's protobuf over HTTP has them.

Only what one proxy needs: ids, kinds, times, text and number attributes, an error status. In the specifications: W3C
Trace Context level 1, opentelemetry/proto/collector/trace/v1.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

INTERNAL: Final = 1
SERVER: Final = 2
CLIENT: Final = 3

_ERROR: Final = 2
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ANY_LINE = re.compile(rb"\r\n(?i:traceparent):[^\r]*")
_fixed64 = struct.Struct("<Q").pack


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
    scope_spans = _message(1, _text(1, scope)) + b"".join(_message(2, _span(span)) for span in spans)
    attributes = b"".join(_message(1, _attribute(name, value)) for name, value in resource.items())
    return _message(1, _message(1, attributes) + _message(2, scope_spans))


def _span(span: Span) -> bytes:
    parts = [_message(1, span.trace_id), _message(2, span.span_id)]
    if span.parent_id:
        parts.append(_message(4, span.parent_id))
    parts += (
        _text(5, span.name),
        _number(6, span.kind),
        b"\x39" + _fixed64(span.start_ns),
        b"\x41" + _fixed64(span.end_ns),
    )
    parts += (_message(9, _attribute(name, value)) for name, value in span.attributes.items())
    if span.error:
        parts.append(_message(15, _number(3, _ERROR)))
    return b"".join(parts)


def _attribute(name: str, value: str | int) -> bytes:
    return _text(1, name) + _message(2, _text(1, value) if isinstance(value, str) else _number(3, value))


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode("utf-8", "replace"))


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
