"""Knative's statistics messages in protobuf: what activators tell the autoscaler, and queue-proxies their scraper.

Hot file (STYLE 4): no exception on the normal path, no object per field. Fields and numbers are those of
pkg/autoscaler/metrics/stat.proto (package `metrics`, proto3): zero values are left out, unknown fields are
skipped, of two values of one field the last counts, and two `stat` parts of one message are merged. Bytes that
are no such message raise Malformed; whether a number makes sense (NaN) is judged where it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

#: An activator reports all its revisions in one message, some sixty bytes each.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
#: What the scraper reads of one answer: six numbers, a pod name, and some room for new fields.
MAX_STAT_BYTES: Final = 336

_MAX_DEPTH: Final = 64
_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = 0, 1, 2, 3, 4, 5
_NS, _NAME, _STAT = 1 << 3 | _BYTES, 2 << 3 | _BYTES, 3 << 3 | _BYTES
_POD, _UNIX = 1 << 3 | _BYTES, 7 << 3 | _VARINT
_MESSAGE: Final = b"\x0a"
_double = struct.Struct("<d")
_pack_double = _double.pack
_unpack_double = _double.unpack_from


class Malformed(ValueError):
    """The peer's bytes are no statistics message; says what and where."""


class Stat(NamedTuple):
    """One pod's last second, or that of all activators' requests to one revision. All zero is a valid report."""

    pod_name: str = ""
    average_concurrent_requests: float = 0.0
    average_proxied_concurrent_requests: float = 0.0
    request_count: float = 0.0
    proxied_request_count: float = 0.0
    process_uptime: float = 0.0  # seconds
    timestamp: int = 0  # unix seconds; 0: the receiver's clock counts


class StatMessage(NamedTuple):
    """A Stat and the revision it is about."""

    namespace: str
    name: str
    stat: Stat


EMPTY: Final = Stat()


def encode(messages: Iterable[StatMessage]) -> bytes:
    """A WireStatMessages with these."""
    parts: list[bytes] = []
    for namespace, name, stat in messages:
        inner = encode_stat(stat)
        body = b"".join(
            (_text(b"\x0a", namespace), _text(b"\x12", name), b"\x1a", _length(len(inner)), inner)
        )
        parts += (_MESSAGE, _length(len(body)), body)
    return b"".join(parts)


def encode_stat(stat: Stat) -> bytes:
    """A bare Stat, as queue-proxy answers it on its metrics port."""
    parts = [_text(b"\x0a", stat[0])]
    tag = 0x11
    for value in stat[1:6]:
        if value:
            parts += (bytes((tag,)), _pack_double(value))
        tag += 8
    if stat[6]:
        parts += (b"\x38", _length(stat[6] & 0xFFFFFFFFFFFFFFFF))
    return b"".join(parts)


def decode(data: bytes) -> list[StatMessage]:
    """The messages of a WireStatMessages; one without a stat is skipped, for the sake of later versions."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise Malformed(f"{len(data)} bytes are more than {MAX_MESSAGE_BYTES}")
    found: list[StatMessage] = []
    at, end = 0, len(data)
    while at < end:
        tag, start, at = _field(data, at, end)
        if tag == 0x0A:
            message = _message(data, start, at)
            if message is not None:
                found.append(message)
    return found


def decode_stat(data: bytes) -> Stat:
    """A bare Stat. A body longer than MAX_STAT_BYTES is refused, so that a wrong server can't fill memory."""
    if len(data) > MAX_STAT_BYTES:
        raise Malformed(f"{len(data)} bytes are more than {MAX_STAT_BYTES}")
    return _stat(data, 0, len(data), EMPTY)


def _message(data: bytes, at: int, end: int) -> StatMessage | None:
    namespace = name = ""
    stat: Stat | None = None
    while at < end:
        tag, start, at = _field(data, at, end)
        if tag == _NS:
            namespace = _utf8(data, start, at)
        elif tag == _NAME:
            name = _utf8(data, start, at)
        elif tag == _STAT:
            stat = _stat(data, start, at, EMPTY if stat is None else stat)
    return None if stat is None else StatMessage(namespace, name, stat)


def _stat(data: bytes, at: int, end: int, before: Stat) -> Stat:
    pod, concurrent, proxied, count, proxied_count, uptime, unix = before
    while at < end:
        tag, start, at = _field(data, at, end)
        if tag == _POD:
            pod = _utf8(data, start, at)
        elif tag == 0x11:
            concurrent = _unpack_double(data, start)[0]
        elif tag == 0x21:
            count = _unpack_double(data, start)[0]
        elif tag == 0x19:
            proxied = _unpack_double(data, start)[0]
        elif tag == 0x29:
            proxied_count = _unpack_double(data, start)[0]
        elif tag == 0x31:
            uptime = _unpack_double(data, start)[0]
        elif tag == _UNIX:
            unix = (start & 0xFFFFFFFFFFFFFFFF ^ 1 << 63) - (1 << 63)  # two's complement
    return Stat(pod, concurrent, proxied, count, proxied_count, uptime, unix)


def _field(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Tag, where the value begins (of a varint: the value itself), and where the next field begins."""
    tag = data[at]
    if tag < 0x80:
        at += 1
    else:
        tag, at = _varint(data, at, end)
    kind = tag & 7
    if kind == _BYTES:
        if at < end and data[at] < 0x80:
            length = data[at]
            at += 1
        else:
            length, at = _varint(data, at, end)
        after = at + length
    elif kind == _FIXED64:
        after = at + 8
    elif kind == _VARINT:
        at, after = _varint(data, at, end)
    elif kind == _FIXED32:
        after = at + 4
    elif kind == _GROUP:
        after = _skip_group(data, at, end, tag >> 3)
    else:
        raise Malformed(f"wire type {kind} where a field should begin, before byte {at}")
    if after > end:
        raise Malformed(
            f"a field's value goes {after - end} bytes beyond its message, which ends at byte {end}"
        )
    if not 8 <= tag <= 0xFFFFFFFF:
        raise Malformed(f"field number {tag >> 3} before byte {at}")
    return tag, at, after


def _skip_group(data: bytes, at: int, end: int, number: int) -> int:
    """Groups are proto2's; nobody sends them here, but an unknown field may be one."""
    open_groups = [number]
    while at < end:
        tag, after_tag = _varint(data, at, end)
        if tag & 7 == _END_GROUP:
            if tag >> 3 != open_groups.pop():
                break
            at = after_tag
            if not open_groups:
                return at
        elif tag & 7 == _GROUP:
            open_groups.append(tag >> 3)
            at = after_tag
            if len(open_groups) > _MAX_DEPTH or not 8 <= tag <= 0xFFFFFFFF:
                break
        else:
            _, _, at = _field(data, at, end)
    raise Malformed(f"the group of field {number} does not end properly, at byte {at}")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift >= 70:
            break
    raise Malformed(f"a number is cut off or longer than ten bytes, before byte {at}")


def _utf8(data: bytes, start: int, end: int) -> str:
    try:
        return data[start:end].decode()
    except UnicodeDecodeError:
        raise Malformed(f"bytes {start} to {end} are no UTF-8 text") from None


def _text(tag: bytes, text: str) -> bytes:
    if not text:
        return b""
    encoded = text.encode()
    return tag + _length(len(encoded)) + encoded


def _length(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
