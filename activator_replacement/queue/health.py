"""gRPC's health protocol, one question a connection: grpc.health.v1.Health/Check.

Frames are written and read as they are: of the answer only the first message counts, and its headers, which would
need a table, not at all.
"""

from __future__ import annotations

import asyncio
from typing import Final

from kserve_ext.wire.http2.hpack import literal
from kserve_ext.wire.protobuf import message

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _PADDED, _ACK = 1, 4, 8, 1
#: Of an answer; it has a few bytes.
_MOST_BYTES: Final = 65_536
#: HealthCheckResponse with the status SERVING, behind its length.
_SERVING: Final = b"\x00\x00\x00\x00\x02\x08\x01"


async def serving(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, service: str
) -> bool:
    """Whether the service ("" = the whole server) says that it serves."""
    writer.write(_question(authority, service.encode()))
    answer = b""
    left = _MOST_BYTES
    while left > 0:
        head = await reader.readexactly(9)
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        left -= 9 + size
        if left <= 0:
            return False
        payload = await reader.readexactly(size)
        if kind == _DATA:
            answer += payload[1 : size - payload[0]] if flags & _PADDED else payload
            if len(answer) >= len(_SERVING):
                return answer[: len(_SERVING)] == _SERVING
        elif kind in (_RESET, _GOAWAY):
            return False
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            writer.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            return False  # an answer without a message is an error
    return False


def _question(authority: str, service: bytes) -> bytes:
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", authority.encode()),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"kube-probe/1.0"),
        (b"te", b"trailers"),
    )
    asked = message(1, service) if service else b""
    return b"".join(
        (
            _PREFACE,
            _frame(_SETTINGS, 0, 0, b""),
            _frame(_HEADERS, _END_HEADERS, 1, b"".join(literal(name, value) for name, value in fields)),
            _frame(_DATA, _END_STREAM, 1, b"\x00" + len(asked).to_bytes(4, "big") + asked),
        )
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
