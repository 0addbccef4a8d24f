"""One HTTP/2 connection, either side of it, without a socket: bytes in, calls of its user, bytes out.

It keeps the protocol's state (streams, windows, settings, header tables, CONTINUATION) and its limits; it decides
nothing about requests. Header blocks reach the user standing alone (see fields.py). Connection windows are
refilled here as long as little is buffered; stream windows by `passed_on`, so that no stream buffers more than its
window. A peer that breaks the protocol raises Violation; its user then says goaway and closes.

Hot dialect, see kserve_ext/wire/http1.py. Go's limits for comparison: golang.org/x/net/http2/server.go.
"""

from __future__ import annotations

from typing import Final

from kserve_ext.wire.http2 import frames
from kserve_ext.wire.http2.blocks import Blocks
from kserve_ext.wire.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    GOAWAY,
    HEADERS,
    MOST_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Violation,
)
from kserve_ext.wire.http2.sending import FIRST_STREAMS, Sending, User
from kserve_ext.wire.http2.streams import Stream

STREAM_WINDOW: Final = 262_144  # of a stream whose bytes go on; until some have, DEFAULT_WINDOW
SERVER_WINDOW: Final = 1 << 20
CLIENT_WINDOW: Final = 16 << 20

_EARLY_S: Final = 0.1  # a stream that ends sooner by its peer's doing is work for nothing

#: Of a header block in one frame, without anything beside it, END_HEADERS is the only one.
_BLOCK_FLAGS: Final = END_HEADERS | PADDED | WITH_PRIORITY

_head = frames.FRAME_HEAD.unpack_from


class Connection(Sending):
    __slots__ = (
        "_blocks",
        "_buffered_most",
        "_client",
        "_half_window",
        "_now",
        "_preface_left",
        "_rest",
        "_unreturned",
        "_window_size",
    )

    def __init__(
        self,
        user: User,
        now: float,
        *,
        client: bool,
        max_streams: int = FIRST_STREAMS,
        list_bytes: int = 32_768,
        buffered_bytes: int = MOST_WINDOW,
    ) -> None:
        """`buffered_bytes`: when so much of what came has not gone on, the peer's window is not opened further."""
        window = CLIENT_WINDOW if client else SERVER_WINDOW
        super().__init__(
            user, now, client=client, max_streams=max_streams, list_bytes=list_bytes, window=window
        )
        self._client = client
        self._buffered_most = buffered_bytes
        self._now = now
        self._rest = b""
        self._preface_left = b"" if client else PREFACE
        self._blocks = Blocks(list_bytes)
        self._window_size = window
        self._half_window = window >> 1
        self._unreturned = 0  # of the window: what the peer has used and not got back

    # --- bytes in

    def receive(self, data: bytes, now: float) -> None:
        """Raises Violation."""
        self._now = now
        if self._preface_left:
            data = self._preface(data)
        if self._rest:
            data = self._rest + data
        at = 0
        size = len(data)
        streams = self.streams
        blocks = self._blocks
        while size - at >= 9:
            upper, length, kind, flags, number = _head(data, at)
            if upper or length > FRAME_BYTES:
                raise Violation(frames.FRAME_SIZE_ERROR, self._too_long(data[at : at + 9]))
            start = at + 9
            end = start + length
            if end > size:
                break
            at = end
            number &= MOST_WINDOW
            if blocks.parts is not None and kind != CONTINUATION:
                raise Violation(frames.PROTOCOL_ERROR, "another frame within a header block")
            if kind == DATA:
                unreturned = self._unreturned = self._unreturned + length
                if unreturned > self._window_size:
                    raise Violation(frames.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
                stream = streams.get(number)
                payload = data[start:end]
                if flags & PADDED:
                    payload = frames.unpadded(payload)
                if stream is None or not stream.open_in:
                    self._closed(number, stream, True)
                elif length > stream.receive_window:
                    self._broken(stream, frames.FLOW_CONTROL_ERROR)
                else:
                    self._data(stream, payload, length, flags & END_STREAM)
                if self._unreturned > self._half_window:
                    self._refill()
            elif kind == HEADERS:
                self.budget.left += 1
                block: bytes | None = data[start:end]
                if (
                    flags & _BLOCK_FLAGS != END_HEADERS
                    or not 0 < length <= blocks.plain
                    or data[start] == 0x20
                ):
                    block = blocks.headers(number, flags, data[start:end])
                if block is not None:
                    self._block(number, block, flags & END_STREAM != 0)
            elif kind == WINDOW_UPDATE:
                self._window_update(number, data[start:end])
            else:
                self._other(kind, flags, number, data[start:end])
        self._rest = data[at:] if at else data

    def _preface(self, data: bytes) -> bytes:
        expected = self._preface_left
        size = min(len(expected), len(data))
        if data[:size] != expected[:size]:
            raise Violation(frames.PROTOCOL_ERROR, "not the preface of HTTP/2")
        self._preface_left = expected[size:]
        return data[size:]

    def _too_long(self, start: bytes) -> str:
        if self._client and start.startswith(b"HTTP/1."):
            return "it answers HTTP/1.1 to a request in HTTP/2"
        return f"a frame of more than {FRAME_BYTES} bytes"

    def _data(self, stream: Stream, payload: bytes, length: int, end: int) -> None:
        stream.receive_window -= length
        size = len(payload)
        if size:
            self.budget.left += 1
            self.buffered += size
            stream.owed += size
        elif not end:
            self._useless("empty DATA frames")
        if length != size:
            stream.taken += length - size
        if end:
            stream.open_in = False
            if not stream.open_out:
                del self.streams[stream.id]
        self._user.data(stream, payload, end != 0)

    def _block(self, number: int, block: bytes, end: bool) -> None:
        stream = self.streams.get(number)
        if stream is not None and stream.open_in:
            if not self._client and not end:
                self._broken(stream, frames.PROTOCOL_ERROR)
                return
            if end:
                stream.open_in = False
                if not stream.open_out:
                    del self.streams[number]
            self._user.headers(stream, block, end)
        elif self._client or number <= self._last or not number & 1:
            if stream is None and not number & 1:
                raise Violation(frames.PROTOCOL_ERROR, "HEADERS on a stream that the peer can't begin")
            if stream is None and not self._client and number not in self._reset_by_us:
                raise Violation(frames.STREAM_CLOSED, "HEADERS on a closed stream")
            self._closed(number, stream)
        else:
            self._last = number
            if self.going or len(self.streams) >= self.max_streams:
                self._refuse(number)
                return
            stream = Stream(number, self.peer_window)
            stream.since = self._now
            stream.open_in = not end
            self.streams[number] = stream
            self._user.opened(stream, block, end)

    def _window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Violation(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE: four bytes")
        increment = int.from_bytes(payload, "big") & MOST_WINDOW
        if number == 0:
            self.send_window += increment
            if not increment or self.send_window > MOST_WINDOW:
                raise Violation(
                    frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR, "WINDOW_UPDATE"
                )
            if self._waiting:
                self._send_waiting()
            return
        stream = self.streams.get(number)
        if stream is None:
            self._closed(number, None)
            return
        stream.send_window += increment
        if not increment or stream.send_window > MOST_WINDOW:
            self._broken(stream, frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR)
        else:
            self._window_opened(stream)

    def _other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == CONTINUATION:
            block = self._blocks.continuation(number, flags, payload)
            if block is not None:
                self._block(number, block, self._blocks.end)
        elif kind == RST_STREAM:
            self._reset_by_peer(number, payload)
        elif kind == SETTINGS:
            self._settings(number, flags, payload)
        elif kind == PING:
            if number or len(payload) != 8:
                raise Violation(
                    frames.PROTOCOL_ERROR if number else frames.FRAME_SIZE_ERROR,
                    "PING: eight bytes, stream 0",
                )
            self._useless("PING frames")
            if not flags & ACK:
                self.put(frames.frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self._goaway(number, payload)
        elif kind == frames.PUSH_PROMISE:
            raise Violation(frames.PROTOCOL_ERROR, "PUSH_PROMISE: not asked for")
        elif kind == PRIORITY:
            if not number or len(payload) != 5:
                raise Violation(frames.PROTOCOL_ERROR if not number else frames.FRAME_SIZE_ERROR, "PRIORITY")
            self._useless("PRIORITY frames")
        else:
            self._useless("frames of unknown kinds")

    def _reset_by_peer(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Violation(frames.FRAME_SIZE_ERROR, "RST_STREAM: four bytes")
        stream = self.streams.get(number)
        if stream is None:
            self._closed(number, None)
            return
        self.charge(stream)
        self._forget(stream)
        self._user.reset(stream, int.from_bytes(payload, "big"))

    def _settings(self, number: int, flags: int, payload: bytes) -> None:
        if number:
            raise Violation(frames.PROTOCOL_ERROR, "SETTINGS: stream 0")
        if flags & ACK:
            if payload:
                raise Violation(frames.FRAME_SIZE_ERROR, "SETTINGS: an ACK is empty")
            self._blocks.table_known = True
            return
        self._useless("SETTINGS frames", 1 + len(self.streams) // 20)  # it may change the windows of all
        pairs = frames.read_settings(payload)
        self.put(frames.SETTINGS_ACK)  # before the DATA that a larger window lets go
        self.apply(pairs)

    def _goaway(self, number: int, payload: bytes) -> None:
        if number or len(payload) < 8:
            raise Violation(frames.PROTOCOL_ERROR if number else frames.FRAME_SIZE_ERROR, "GOAWAY")
        self._useless("GOAWAY frames")
        self.going = True
        last = int.from_bytes(payload[:4], "big") & MOST_WINDOW
        code = int.from_bytes(payload[4:8], "big")
        unprocessed = []
        if self._client:
            unprocessed = [stream for stream in self.streams.values() if stream.id > last]
            for stream in unprocessed:
                self._forget(stream)
        self._user.went_away(unprocessed, code)

    def _closed(self, number: int, stream: Stream | None, data: bool = False) -> None:
        """A frame on a stream that is closed, at least in this direction; idle ones can't have any."""
        if number == 0 or number > (self._next - 2 if self._client else self._last) or not number & 1:
            raise Violation(frames.PROTOCOL_ERROR, "a frame on a stream that nobody began")
        if stream is not None:
            self._broken(stream, frames.STREAM_CLOSED)
        if not self._client and number not in self._reset_by_us:
            if data:
                self._send_reset(number, frames.STREAM_CLOSED)
            self._useless("frames on closed streams")

    def _broken(self, stream: Stream, code: int) -> None:
        """The peer broke the protocol in a way that ends this stream."""
        self.charge(stream)
        self.reset(stream, code)
        self._user.reset(stream, code)

    def charge(self, stream: Stream) -> None:
        """The peer ends a stream, or makes us do so (CVE-2025-8671). Raises Violation."""
        if self._client or self._now - stream.since >= _EARLY_S:
            return
        if not self.resets.spend(self._now):
            raise Violation(frames.ENHANCE_YOUR_CALM, "too many streams reset")

    def _useless(self, what: str, cost: int = 1) -> None:
        if not self.budget.spend(self._now, cost):
            raise Violation(frames.ENHANCE_YOUR_CALM, f"too many {what}")

    def _refuse(self, number: int) -> None:
        self._send_reset(number, frames.REFUSED_STREAM)
        self._useless("streams over the limit")

    def refuse(self, stream: Stream) -> None:
        """While `opened`: the peer may begin it again later. Raises Violation when there are too many such."""
        self._forget(stream)
        self._refuse(stream.id)

    def upgraded(self, block: bytes) -> None:
        """As a server: the peer's first stream is a request that it has sent in HTTP/1.1."""
        stream = Stream(1, self.peer_window)
        stream.since = self._now
        stream.open_in = False
        self.streams[1] = stream
        self._last = 1
        self._user.opened(stream, block, True)

    @property
    def within_block(self) -> bool:
        """A header block was begun, and its end has not come."""
        return self._blocks.parts is not None

    # --- windows of the peer

    def passed_on(self, stream: Stream, size: int) -> None:
        """So many received bytes have left this process: the peer may send as many again."""
        owed = min(size, stream.owed)  # less when it was dropped before
        stream.owed -= owed
        self.buffered -= owed
        if stream.open_in:
            taken = stream.taken = stream.taken + size
            if taken >= DEFAULT_WINDOW >> 1 and (not stream.grown or taken >= STREAM_WINDOW >> 1):
                if not stream.grown:
                    stream.grown = True
                    taken += STREAM_WINDOW - DEFAULT_WINDOW
                stream.taken = 0
                stream.receive_window += taken
                self.put(frames.window_update(stream.id, taken))
        if self._unreturned > self._half_window:
            self._refill()

    def dropped(self, stream: Stream) -> None:
        """What it still has here goes nowhere."""
        self.buffered -= stream.owed
        stream.owed = 0
        if self._unreturned > self._half_window:
            self._refill()

    def _refill(self) -> None:
        if self.buffered < self._buffered_most:
            self.put(frames.window_update(0, self._unreturned))
            self._unreturned = 0
