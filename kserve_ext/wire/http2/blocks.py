"""Header blocks of one peer, as they come in HEADERS and CONTINUATION frames: joined, bounded, standing alone.

We tell every peer that its header table has size 0; what it has sent before it knew is decoded with its table here,
and laid out again as literals. CONTINUATION is bounded in bytes and in frames (CVE-2024-27316).

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from typing import Final

from kserve_ext.wire.http2.frames import (
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    PADDED,
    PROTOCOL_ERROR,
    WITH_PRIORITY,
    Violation,
    unpadded,
)
from kserve_ext.wire.http2.hpack import DEFAULT_TABLE, Decoder, literal

CONTINUATIONS: Final = 64  # frames of one block
_NO_TABLE: Final = b"\x20"  # the size update to 0
_LIST_MORE: Final = 32 * 1024  # what a decoded list may take beyond a block: 32 bytes count for each field


class Blocks:
    __slots__ = ("_decoder", "_frames", "_most", "end", "parts", "plain", "stream", "table_known")

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._decoder: Decoder | None = Decoder(most_bytes + _LIST_MORE)
        self.table_known = False  # the peer knows that its table has size 0
        #: Blocks up to so many bytes stand alone as they come, unless they begin with a size update.
        self.plain = -1
        self.parts: list[bytes] | None = None  # of a block that was begun, and whose end has not come
        self._frames = 0
        self.stream = 0  # of the block that was begun last,
        self.end = False  # and whether it has END_STREAM

    def headers(self, stream: int, flags: int, payload: bytes) -> bytes | None:
        """The block, where this frame is all of it. Raises Violation."""
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise Violation(FRAME_SIZE_ERROR, "HEADERS: too short")
            payload = payload[5:]
        self.stream = stream
        self.end = flags & END_STREAM != 0
        if flags & END_HEADERS:
            return self._alone(payload)
        self.parts = [payload]
        self._frames = 0
        return None

    def continuation(self, stream: int, flags: int, payload: bytes) -> bytes | None:
        """The block, where this frame ends it. Raises Violation."""
        parts = self.parts
        if parts is None or stream != self.stream:
            raise Violation(PROTOCOL_ERROR, "CONTINUATION without a header block before it")
        parts.append(payload)
        self._frames += 1
        if self._frames > CONTINUATIONS or sum(map(len, parts)) > self._most:
            raise Violation(ENHANCE_YOUR_CALM, f"a header block of more than {self._most} bytes")
        if not flags & END_HEADERS:
            return None
        self.parts = None
        return self._alone(b"".join(parts))

    def _alone(self, block: bytes) -> bytes:
        """The block without size updates, and decoded while the peer's table may still be in use."""
        if len(block) > self._most:
            raise Violation(ENHANCE_YOUR_CALM, f"a header block of more than {self._most} bytes")
        decoder = self._decoder
        if decoder is not None:
            if block[:1] == _NO_TABLE:
                self._forget_table()
            else:
                fields = decoder.decode(block, 0 if self.table_known else DEFAULT_TABLE)
                if not decoder.table_size:
                    self._forget_table()
                return b"".join(literal(f.name, f.value, 0x10 if f.never_indexed else 0) for f in fields)
        return block.lstrip(_NO_TABLE) if block[:1] == _NO_TABLE else block

    def _forget_table(self) -> None:
        self._decoder = None
        self.plain = self._most
