"""Length-prefixed frames that carry one message each: a fixed header, then the MessagePack body.

Hot file (STYLE 4): plain functions and slots, no exception on the normal path. The header is the same for every
kind of frame, so that one unpack reads it; replies leave deadline and trace zero. All integers little-endian.
The trace context is W3C's: 16 bytes of trace id, 8 bytes of span id.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

REQUEST: Final = 1
REPLY: Final = 2
ERROR: Final = 3
HELLO: Final = 4

#: length of what follows the length field, kind, method, reserved, call id, deadline ms, epoch, trace, span
HEADER: Final = struct.Struct("<IBBHIIQ16s8s")
HEADER_BYTES: Final = HEADER.size
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
NO_TRACE: Final = bytes(16)
NO_SPAN: Final = bytes(8)

_pack = HEADER.pack
_two = struct.Struct("<II").pack  # call id and deadline, as in HEADER
_unpack_from = HEADER.unpack_from
_new = tuple.__new__  # what Frame() would call, without the call of Frame()
_LENGTH_FIELD = 4


class Malformed(ValueError):
    """The peer's bytes are no frame of ours; the connection can't go on."""


class ErrorCode(enum.IntEnum):
    """Why a call has no reply."""

    UNAVAILABLE = 1  # no connection, or it was lost
    DEADLINE = 2  # the caller's time is up
    REFUSED = 3  # hello failed, or too much is pending
    MALFORMED = 4  # the body is not the message that the method takes
    UNKNOWN_METHOD = 5  # the peer's role has no such method
    INTERNAL = 6  # the handler raised; the peer's log has the story


class Frame(NamedTuple):
    kind: int
    method: int
    call_id: int
    deadline_ms: int
    epoch: int
    trace: bytes
    span: bytes
    body: bytes


def frame(
    kind: int,
    method: int,
    call_id: int,
    body: bytes,
    epoch: int = 0,
    deadline_ms: int = 0,
    trace: bytes = NO_TRACE,
    span: bytes = NO_SPAN,
) -> bytes:
    """The bytes of one frame."""
    length = HEADER_BYTES - _LENGTH_FIELD + len(body)
    return _pack(length, kind, method, 0, call_id, deadline_ms, epoch, trace, span) + body


def call_id(request: bytes) -> int:
    """Of a whole frame."""
    return int.from_bytes(request[8:12], "little")


def renumbered(request: bytes, call_id: int, deadline_ms: int) -> bytes:
    """The same frame under another call id and deadline, for another connection."""
    return request[:8] + _two(call_id, deadline_ms) + request[16:]


class FrameReader:
    """Bytes in any split -> whole frames. Holds at most one frame's bytes beyond what feed() was given."""

    __slots__ = ("_chunks", "_have", "_need")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEADER_BYTES

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises Malformed."""
        if self._have:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks = []
            self._have = 0
        frames: list[Frame] = []
        at, end = 0, len(data)
        need = HEADER_BYTES
        while end - at >= HEADER_BYTES:
            length, kind, method, _, call_id, deadline_ms, epoch, trace, span = _unpack_from(data, at)
            need = length + _LENGTH_FIELD
            if not HEADER_BYTES <= need <= HEADER_BYTES + MAX_BODY_BYTES or not REQUEST <= kind <= HELLO:
                raise Malformed(f"no frame: kind {kind}, length {length} (is the peer a Galaxy function?)")
            if end - at < need:
                break
            body = data[at + HEADER_BYTES : at + need]
            frames.append(_new(Frame, (kind, method, call_id, deadline_ms, epoch, trace, span, body)))
            at += need
            need = HEADER_BYTES
        if at < end:
            self._chunks = [data[at:]]
            self._have = end - at
        self._need = need
        return frames
