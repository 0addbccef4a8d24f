"""The sending half of an HTTP/2 connection: frames out, within the windows and settings that the peer has given.

DATA that has no window waits in its stream's queue; when the connection's window opens, streams take turns, a frame
each. Header blocks are sent at once, trailers after their stream's queue. Nothing that is sent uses a header table.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, Final, Protocol

from kserve_ext.wire.http1 import Malformed
from kserve_ext.wire.http2 import frames
from kserve_ext.wire.http2.fields import MOST_PER_BYTE, walk
from kserve_ext.wire.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    HEADERS,
    MOST_WINDOW,
    PREFACE,
)
from kserve_ext.wire.http2.streams import Budget, Stream

FIRST_STREAMS: Final = 100  # of a server that has not said how many it takes
FIRST_LIST: Final = 65_536  # bytes of the header list of a peer that has not said what it takes
_RESET_KEPT: Final = 1024
UNFLUSHED_BYTES: Final = 262_144  # of DATA in `out`; what is more waits for `flushed`
#: Waiting payloads up to this are joined: many frames must not cost more than their bytes.
_SMALL: Final = 1024
_NO_TABLE: Final = b"\x20"  # the size update to 0, once, at the start of our first block

_pack = frames.FRAME_HEAD.pack


class User(Protocol):
    """What is called while bytes are read. May send at once, on this connection or another."""

    def opened(self, stream: Stream, block: bytes, end: bool) -> None:
        """A client began a request."""

    def headers(self, stream: Stream, block: bytes, end: bool) -> None:
        """A response's head, an informational one, or trailers (of a client: always trailers, and the end)."""

    def data(self, stream: Stream, payload: bytes, end: bool) -> None: ...

    def reset(self, stream: Stream, code: int) -> None:
        """The stream is gone, in both directions."""

    def drained(self, stream: Stream, size: int) -> None:
        """So many bytes of its queue have left, perhaps with its end (then stream.open_out is False)."""

    def went_away(self, unprocessed: list[Stream], code: int) -> None:
        """A server takes no more streams; those that it has not looked at are gone from the table."""

    def wake(self) -> None:
        """`out` was empty, and will not be when the call that is under way returns."""


class Sending:
    __slots__ = (
        "_first_block",
        "_last",
        "_next",
        "_reset_by_us",
        "_unflushed",
        "_user",
        "_waiting",
        "budget",
        "buffered",
        "going",
        "introduced",
        "max_streams",
        "out",
        "peer_frame",
        "peer_list",
        "peer_streams",
        "peer_window",
        "resets",
        "send_window",
        "streams",
        "stuck",
        "sure_bytes",
    )

    def __init__(
        self, user: User, now: float, *, client: bool, max_streams: int, list_bytes: int, window: int
    ) -> None:
        self._user = user
        self.max_streams = max_streams
        self.streams: dict[int, Stream] = {}
        self.out: list[bytes] = []
        self.going = False  # nothing new is begun: one side said GOAWAY
        self.stuck = False  # the transport takes no more for now: DATA waits
        self.send_window = DEFAULT_WINDOW
        self.peer_window = DEFAULT_WINDOW  # of a new stream
        self.peer_frame = FRAME_BYTES
        self.peer_list = FIRST_LIST
        self.sure_bytes = FIRST_LIST // MOST_PER_BYTE  # the peer takes every block up to this
        self.introduced = False  # the peer's settings have come
        self.peer_streams = FIRST_STREAMS
        self.buffered = 0  # bytes that came and have not gone on
        self.resets = Budget(1000, 200.0, now)
        self.budget = Budget(1000, 200.0, now)
        self._unflushed = 0
        self._first_block = True
        self._last = 0  # highest stream that the peer began
        self._next = 1  # stream that we begin next, as a client
        #: With a queue and a window of their own: what they wait for is the connection. Who sent last is last.
        self._waiting: OrderedDict[Stream, deque[bytes]] = OrderedDict()
        self._reset_by_us: dict[int, None] = {}  # the last ones: what still comes for them is no fault
        own = (frames.ENABLE_PUSH, 0) if client else (frames.MAX_CONCURRENT_STREAMS, max_streams)
        first = frames.settings((frames.HEADER_TABLE_SIZE, 0), own, (frames.MAX_HEADER_LIST_SIZE, list_bytes))
        more = frames.window_update(0, window - DEFAULT_WINDOW)
        self.out.append((PREFACE if client else b"") + first + more)

    def apply(self, pairs: list[tuple[int, int]]) -> None:
        """The peer's settings; of one that comes twice, the last."""
        self.introduced = True
        for name, value in dict(pairs).items():
            if name == frames.INITIAL_WINDOW_SIZE:
                change = value - self.peer_window
                self.peer_window = value
                for stream in list(self.streams.values()):
                    stream.send_window += change
                    if stream.send_window > MOST_WINDOW:
                        raise frames.Violation(frames.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE: too large")
                if change > 0:
                    for stream in list(self.streams.values()):
                        self._window_opened(stream)
            elif name == frames.MAX_FRAME_SIZE:
                self.peer_frame = value
            elif name == frames.MAX_CONCURRENT_STREAMS:
                self.peer_streams = value
            elif name == frames.MAX_HEADER_LIST_SIZE:
                self.peer_list = value
        self.sure_bytes = min(self.peer_list // MOST_PER_BYTE, self.peer_frame - 1)

    def room(self) -> bool:
        """As a client: one more stream may be begun."""
        return not self.going and len(self.streams) < self.peer_streams and self._next < MOST_WINDOW

    def begin(self, exchange: Any, block: bytes, end: bool) -> Stream:
        stream = Stream(self._next, self.peer_window, exchange)
        self._next += 2
        self.streams[stream.id] = stream
        self.send_headers(stream, block, end)
        return stream

    def takes(self, block: bytes) -> bool:
        """The peer reads this header block without giving up the connection, which is not its sender's alone.

        Go does so when a frame of it is more than twice what is left of the list, and when a frame follows one
        that was too much; what Huffman's code makes longer counts as long as it is.
        """
        size = len(block)
        if size <= self.sure_bytes:
            return True
        most = self.peer_list
        if size >= self.peer_frame:
            most -= self.peer_frame >> 1
        if size > most:
            return False
        try:
            walk(block, most)
        except Malformed:
            return False
        return True

    def send_headers(self, stream: Stream, block: bytes, end: bool) -> None:
        if self._first_block:
            self._first_block = False
            block = _NO_TABLE + block
        size = len(block)
        if size > self.peer_frame:
            self.put(frames.headers_frames(stream.id, block, end, self.peer_frame))
        else:
            out = self.out
            if not out:
                self._user.wake()
            flags = END_HEADERS | END_STREAM if end else END_HEADERS
            out.append(_pack(size >> 16, size & 0xFFFF, HEADERS, flags, stream.id))
            out.append(block)
        if end:
            self._sent_end(stream)

    def put(self, frame: bytes) -> None:
        """To be sent, after all that is already."""
        out = self.out
        if not out:
            self._user.wake()
        out.append(frame)

    def send_data(self, stream: Stream, payload: bytes, end: bool) -> int:
        """How many bytes left at once; `drained` tells of the others."""
        size = len(payload)
        if stream.queue:
            self._queue(stream, stream.queue, payload, end)
            return 0
        if size and (
            size > stream.send_window
            or size > self.send_window
            or size > self.peer_frame
            or self.stuck
            or self._unflushed > UNFLUSHED_BYTES
        ):
            if stream.queue is None:
                stream.queue = deque()
            self._queue(stream, stream.queue, payload, end)
            self._waiting[stream] = stream.queue
            return self._send_some(stream, stream.queue, size)
        stream.send_window -= size
        self.send_window -= size
        self._unflushed += size
        out = self.out
        if not out:
            self._user.wake()
        out.append(_pack(size >> 16, size & 0xFFFF, DATA, END_STREAM if end else 0, stream.id))
        out.append(payload)
        self.budget.left += 1  # gRPC measures its path with a PING for what it is sent
        if end:
            self._sent_end(stream)
        return size

    def _queue(self, stream: Stream, queue: deque[bytes], payload: bytes, end: bool) -> None:
        size = len(payload)
        if queue and size <= _SMALL and len(queue[-1]) <= FRAME_BYTES - _SMALL:
            queue[-1] += payload
        elif size:
            queue.append(payload)
        stream.queued += size
        stream.end_queued = end

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """After the stream's queue; always its end."""
        if stream.queue:
            stream.end_queued = True
            stream.trailers = block
        else:
            self.send_headers(stream, block, True)

    def flushed(self) -> None:
        """`out` was handed to the transport."""
        self._unflushed = 0
        if self._waiting and not self.stuck:
            self._send_waiting()

    def unstick(self) -> None:
        """The transport takes bytes again."""
        self.stuck = False
        self._send_waiting()

    def _send_waiting(self) -> None:
        """A frame for each stream in turn, as long as there is a window."""
        waiting = self._waiting
        while waiting and self.send_window > 0 and not self.stuck and self._unflushed <= UNFLUSHED_BYTES:
            stream, queue = next(iter(waiting.items()))
            waiting.move_to_end(stream)
            self._send_queue(stream, queue, self.peer_frame)

    def _send_queue(self, stream: Stream, queue: deque[bytes], most: int) -> None:
        sent = self._send_some(stream, queue, most)
        if sent:
            self._user.drained(stream, sent)

    def _window_opened(self, stream: Stream) -> None:
        """Its own window is larger than it was."""
        if stream.queue and stream.send_window > 0:
            self._waiting[stream] = stream.queue
            self._send_queue(stream, stream.queue, MOST_WINDOW)

    def _send_some(self, stream: Stream, queue: deque[bytes], most: int) -> int:
        """Up to `most` bytes of a stream's queue, and its end where it is reached."""
        sent = 0
        while queue and not self.stuck and self._unflushed <= UNFLUSHED_BYTES:
            payload = queue[0]
            size = min(len(payload), stream.send_window, self.send_window, self.peer_frame, most - sent)
            if size <= 0:
                break
            if size == len(payload):
                queue.popleft()
            else:
                queue[0] = payload[size:]
                payload = payload[:size]
            stream.queued -= size
            stream.send_window -= size
            self.send_window -= size
            self._unflushed += size
            sent += size
            last = stream.end_queued and not queue and stream.trailers is None
            self.put(_pack(size >> 16, size & 0xFFFF, DATA, END_STREAM if last else 0, stream.id))
            self.put(payload)
            self.budget.left += 1
        if queue:
            if stream.send_window <= 0:
                self._waiting.pop(stream, None)
        else:
            self._waiting.pop(stream, None)
            if stream.end_queued and stream.trailers is not None:
                self.send_headers(stream, stream.trailers, True)
            elif stream.end_queued:
                self._sent_end(stream)
        return sent

    def _sent_end(self, stream: Stream) -> None:
        stream.open_out = False
        if not stream.open_in:
            self.streams.pop(stream.id, None)
        self.resets.left += 1
        self.budget.left += 1

    def reset(self, stream: Stream, code: int) -> None:
        """Ends a stream in both directions; nothing where it has ended already."""
        if stream.open_in or stream.open_out:
            self._forget(stream)
            self._send_reset(stream.id, code)

    def _send_reset(self, number: int, code: int) -> None:
        kept = self._reset_by_us
        if len(kept) >= _RESET_KEPT:
            del kept[next(iter(kept))]
        kept[number] = None
        self.put(frames.rst_stream(number, code))

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._waiting.pop(stream, None)
        stream.open_in = stream.open_out = False
        stream.queue = None
        stream.queued = 0
        self.buffered -= stream.owed
        stream.owed = 0

    def goaway(self, code: int, reason: str = "", *, soon: bool = False) -> None:
        """`soon`: nothing is refused yet; the peer may have begun streams that are on their way."""
        last = frames.LAST_STREAM if soon else self._last
        self.going = self.going or not soon
        self.put(frames.goaway(last, code, reason))
