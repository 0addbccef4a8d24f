"""Fields of protobuf messages, as far as we write some: varints, fixed numbers, text and messages within messages.

Only writing; what we read of protobuf is stats.py's. Whoever writes a message knows its fields' numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

_fixed64 = struct.Struct("<Q").pack
_double = struct.Struct("<d").pack
_WORD = (1 << 64) - 1


def varint(value: int) -> bytes:
    """Negative ones as two's complement of 64 bits, as int64 has them."""
    value &= _WORD
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    return message(field, value.encode("utf-8", "replace"))


def fixed64(field: int, value: int) -> bytes:
    return varint(field << 3 | 1) + _fixed64(value)


def double(field: int, value: float) -> bytes:
    return varint(field << 3 | 1) + _double(value)


def packed(field: int, values: Iterable[int]) -> bytes:
    """A repeated number."""
    return message(field, b"".join(map(varint, values)))


def packed_fixed64(field: int, values: Iterable[int]) -> bytes:
    return message(field, b"".join(map(_fixed64, values)))


def packed_double(field: int, values: Iterable[float]) -> bytes:
    return message(field, b"".join(map(_double, values)))
