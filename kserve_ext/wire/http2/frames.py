"""HTTP/2 frames (RFC 9113): the numbers of the protocol, frames to bytes, and the payload of SETTINGS.

Knows no connection and no stream: connection.py walks the frames of a connection and keeps its state.
Never builds a frame longer than the receiver takes: what may be long (DATA, header blocks) is cut by the caller or
here by `limit`.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11
HTTP_1_1_REQUIRED: Final = 13

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65_535
FRAME_BYTES: Final = 16_384  # the longest payload that we take, and that everybody takes
MOST_WINDOW: Final = 2**31 - 1
LAST_STREAM: Final = 2**31 - 1

#: length's upper byte, its lower two, type, flags, stream
FRAME_HEAD: Final = struct.Struct(">BHBBI")
_pack = FRAME_HEAD.pack
_SETTING: Final = struct.Struct(">HI")
SETTINGS_ACK: Final = _pack(0, 0, SETTINGS, ACK, 0)


class Violation(Exception):
    """The peer broke the protocol in a way that ends the connection; `code` is what its GOAWAY says."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def headers_frames(stream: int, block: bytes, end_stream: bool, limit: int) -> bytes:
    """HEADERS, with as many CONTINUATION frames as a long block needs."""
    size = len(block)
    flags = END_STREAM if end_stream else 0
    if size <= limit:
        return _pack(size >> 16, size & 0xFFFF, HEADERS, flags | END_HEADERS, stream) + block
    parts = [frame(HEADERS, flags, stream, block[:limit])]
    for at in range(limit, size, limit):
        last = END_HEADERS if at + limit >= size else 0
        parts.append(frame(CONTINUATION, last, stream, block[at : at + limit]))
    return b"".join(parts)


def window_update(stream: int, increment: int) -> bytes:
    return _pack(0, 4, WINDOW_UPDATE, 0, stream) + increment.to_bytes(4, "big")


def rst_stream(stream: int, code: int) -> bytes:
    return _pack(0, 4, RST_STREAM, 0, stream) + code.to_bytes(4, "big")


def goaway(last: int, code: int, reason: str = "") -> bytes:
    text = reason.encode("ascii", "replace")[:256]
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + text)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """(identifier, value) in their order; those whose range the protocol bounds are checked."""
    if len(payload) % 6:
        raise Violation(FRAME_SIZE_ERROR, "SETTINGS: not a multiple of six bytes")
    pairs = list(_SETTING.iter_unpack(payload))
    for name, value in pairs:
        if name == ENABLE_PUSH and value > 1:
            raise Violation(PROTOCOL_ERROR, "ENABLE_PUSH: 0 or 1")
        if name == INITIAL_WINDOW_SIZE and value > MOST_WINDOW:
            raise Violation(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE: at most 2^31 - 1")
        if name == MAX_FRAME_SIZE and not FRAME_BYTES <= value < 1 << 24:
            raise Violation(PROTOCOL_ERROR, "MAX_FRAME_SIZE: from 2^14 to 2^24 - 1")
    return pairs


def unpadded(payload: bytes) -> bytes:
    """Of a frame with PADDED."""
    if not payload or payload[0] >= len(payload):
        raise Violation(PROTOCOL_ERROR, "more padding than there is frame")
    return payload[1 : len(payload) - payload[0]]
