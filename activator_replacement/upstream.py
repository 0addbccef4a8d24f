"""The connection to an instance: reads its response's head, finds the body's end, passes the bytes on.

Bodies pass verbatim and at once (an SSE event is never waited for to be longer). What is ambiguous or not HTTP
ends the connection, and is 502 when no head had been passed on. A client that reads slowly is not read for.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from activator_replacement.exchange import COPIED, PIPED, SENT, HttpExchange
from kserve_ext.wire.http1 import CHUNKED, UNTIL_CLOSE, Malformed, ResponseHead, scan_response
from kserve_ext.wire.http1_body import ChunkWalker
from kserve_ext.wire.http1_forward import forward_response

if TYPE_CHECKING:
    from activator_replacement.plane import Plane

_HEAD: Final = 0
_LENGTH: Final = 1
_CHUNKED: Final = 2
_UNTIL_CLOSE: Final = 3
_PIPE: Final = 4
_MARKED: Final = 5
_TAIL: Final = 20  # what is kept of the end of an event stream: an end mark with its line ends


class UpstreamProtocol(asyncio.Protocol):
    __slots__ = (
        "_buffer",
        "_events",
        "_framing",
        "_heard",
        "_keep",
        "_left",
        "_plane",
        "_tail",
        "_walker",
        "addr",
        "closed",
        "exchange",
        "idle_since",
        "read_paused",
        "transport",
        "write_paused",
    )

    def __init__(self, plane: Plane, addr: str) -> None:
        self._plane = plane
        self.addr = addr
        self.transport: asyncio.Transport = cast(
            "asyncio.Transport", None
        )  # set before anything else is called
        self.exchange: HttpExchange | None = None
        self.idle_since = 0.0
        self.closed = False
        self.read_paused = False
        self.write_paused = False
        self._framing = _HEAD
        self._buffer = b""
        self._heard = False
        self._keep = False
        self._left = 0
        self._walker: ChunkWalker | None = None
        self._events = False
        self._tail = b""

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=self._plane.limits.write_buffer_bytes)
        keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # nobody asked: out of step, never to be used again
            self.close()
            return
        framing = self._framing
        if framing == _HEAD:
            self._head(exchange, data)
        elif framing == _CHUNKED:
            self._chunks(exchange, data)
        elif framing == _MARKED:
            self._marked(exchange, data)
        elif framing == _LENGTH:
            n = len(data)
            if n < self._left:
                self._left -= n
                exchange.client.write(data)
            else:
                if n > self._left:
                    data = data[: self._left]
                    self._keep = False
                exchange.client.write(data)
                self._complete(exchange)
        else:
            exchange.client.write(data)

    def eof_received(self) -> None:
        self._lost(True, "closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(error is None, f"broke the connection ({error})" if error else "closed the connection")

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None and not self.exchange.body_done:
            self.exchange.client.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None and not self.exchange.body_done:
            self.exchange.client.resume_reading()

    # --- for the exchange, its client and the cache

    def usable(self) -> bool:
        return not self.closed and not self.transport.is_closing()

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_reading(self) -> None:
        if not self.read_paused and not self.closed:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused and not self.closed:
            self.read_paused = False
            self.transport.resume_reading()

    def abandon(self) -> None:
        """The exchange ended without it: the instance must see at once that nobody listens."""
        self.exchange = None
        self.close()

    def close(self) -> None:
        self.closed = True
        self.transport.abort()

    def finish_writing(self) -> None:
        """The client of an upgraded connection closed: what it had sent still goes out."""
        self.exchange = None
        self.closed = True
        self.transport.close()

    @property
    def ends_between_events(self) -> bool:
        """The response so far could be continued with an event of our own."""
        if self._framing == _MARKED:
            return True
        if not self._events or self._walker is None or not self._walker.between_chunks:
            return False
        return self._tail == b"" or self._tail.endswith((b"\n\n\r\n", b"\r\n\r\n\r\n"))

    @property
    def said_done(self) -> bool:
        """The stream's last event was OpenAI's end mark: a client that closes then has all of it."""
        return self._events and b"data: [DONE]" in self._tail

    # --- response

    def _head(self, exchange: HttpExchange, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        self._heard = True
        plane = self._plane
        while True:
            size = data.find(b"\r\n\r\n") + 4
            if size == 3 or size > plane.limits.head_bytes:
                if len(data) > plane.limits.head_bytes:
                    self._refuse(
                        exchange, f"answered with a head of more than {plane.limits.head_bytes} bytes"
                    )
                else:
                    self._buffer = data
                return
            try:
                head = scan_response(data, size, exchange.facts.method == b"HEAD")
            except Malformed as malformed:
                self._refuse(exchange, f"answered what is not HTTP: {malformed.reason}")
                return
            if head.status >= 200:
                break
            if head.status == 101:
                self._switch(exchange, data, head)
                return
            if exchange.facts.minor and exchange.stream is None:
                exchange.client.write(data[:size])
            data = data[size:]
            if not data:
                return
        if exchange.stream is not None:
            self._goes_on(exchange, data, head)
            return
        if head.full and exchange.full():
            self.exchange = None
            self.close()
            return
        client = exchange.client
        length = head.length
        if length == CHUNKED and not exchange.facts.minor:
            self._refuse(exchange, "answered an HTTP/1.0 request with a chunked body")
            return
        marked = exchange.responding(head.continuation if length == CHUNKED else b"")
        plane.counters.first_byte(head.status, plane.now() - exchange.started)
        if length == UNTIL_CLOSE or plane.draining:
            client.close_after = True
        lines = exchange.marks(head)
        if client.close_after:
            lines += b"Connection: close\r\n"
        self._keep = head.keep_alive
        out = forward_response(head, lines)
        if length >= 0:
            have = len(data) - size
            if have > length:
                self._keep = False
                have = length
            if have > COPIED:
                client.write(out)
                client.write(data[size : size + have])
            else:
                client.write(out + data[size : size + have])
            if have < length:
                self._framing = _LENGTH
                self._left = length - have
            else:
                self._complete(exchange)
        else:
            client.write(out)
            if marked:
                self._framing = _MARKED
            elif length == CHUNKED:
                self._framing = _CHUNKED
                self._walker = ChunkWalker()
                self._events = head.event_stream
                self._tail = b""
            else:
                self._framing = _UNTIL_CLOSE
                client.reset_on_abort = True
            if len(data) > size:
                self.data_received(data[size:])

    def _chunks(self, exchange: HttpExchange, data: bytes) -> None:
        walker = self._walker
        if walker is None:
            return
        try:
            end = walker.feed(data)
        except Malformed as malformed:
            self._tail = b"?"
            self._refuse(exchange, f"answered with a broken body: {malformed.reason}")
            return
        if end < 0:
            if self._events:
                self._tail = data[-_TAIL:] if len(data) >= _TAIL else (self._tail + data)[-_TAIL:]
            exchange.client.write(data)
            return
        if end < len(data):
            data = data[:end]
            self._keep = False
        exchange.client.write(data)
        self._complete(exchange)

    def _goes_on(self, exchange: HttpExchange, data: bytes, head: ResponseHead) -> None:
        """The head of a response that another instance had begun."""
        if head.status != 200 or not head.continuation or head.length != CHUNKED:
            self._heard = head.status != 503  # loading or draining: perhaps another one takes it
            self.exchange = None
            self.close()
            what = f"instance {exchange.instance} at {self.addr} did not go on with the stream"
            exchange.upstream_lost(self, f"{what} (status {head.status})", self._heard)
            return
        self._keep = head.keep_alive
        self._framing = _MARKED
        exchange.goes_on()
        if len(data) > head.size:
            self.data_received(data[head.size :])

    def _marked(self, exchange: HttpExchange, data: bytes) -> None:
        stream = exchange.stream
        if stream is None:
            return
        try:
            out = stream.feed(data)
        except Malformed as malformed:
            self._refuse(exchange, f"answered with a broken body: {malformed.reason}")
            return
        if out:
            exchange.client.write(out)
        if stream.ended:
            if stream.surplus:
                self._keep = False
            self._complete(exchange)

    def _complete(self, exchange: HttpExchange) -> None:
        self.exchange = None
        exchange.upstream = None
        self._framing = _HEAD
        self._heard = False
        self._walker = None
        self._events = False
        if self._keep and exchange.body_done and not self.write_paused:
            self.resume_reading()
            self._plane.cache.give(self)
        else:
            self.close()
        exchange.completed()

    def _switch(self, exchange: HttpExchange, data: bytes, head: ResponseHead) -> None:
        if not exchange.facts.upgrade:
            self._refuse(exchange, "switched protocols unasked")
            return
        exchange.responding()
        exchange.state = PIPED
        plane = self._plane
        plane.counters.first_byte(101, plane.now() - exchange.started)
        self._framing = _PIPE
        client = exchange.client
        client.write(forward_response(head, exchange.marks(head)) + data[head.size :])
        client.pipe(exchange)

    # --- ends

    def _refuse(self, exchange: HttpExchange, reason: str) -> None:
        self.exchange = None
        self.close()
        exchange.upstream_lost(self, f"instance {exchange.instance} at {self.addr} {reason}", True)

    def _lost(self, clean: bool, reason: str) -> None:
        self.closed = True
        exchange = self.exchange
        if exchange is None:
            self._plane.cache.lost(self)
            return
        self.exchange = None
        self.transport.abort()
        if self._framing == _UNTIL_CLOSE and clean:
            exchange.upstream = None
            exchange.completed()
            return
        begun = "" if exchange.state == SENT else " in the middle of its response"
        exchange.upstream_lost(
            self, f"instance {exchange.instance} at {self.addr} {reason}{begun}", self._heard
        )


def keep_alive(sock: socket.socket | None) -> None:
    """The kernel tells within half a minute when the peer's machine is gone; a listener's connections inherit it."""
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def reset(transport: asyncio.Transport) -> None:
    """Closes with RST: the peer can't take what it has for the whole."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
