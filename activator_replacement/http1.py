"""The client's side of the data plane: reads heads and bodies, one exchange at a time, and writes answers.

Plain callbacks: no task, coroutine, future or dict of headers per request. Pipelined requests wait, unread
beyond a bound, until the exchange before them is done. A client that closes ends its exchange at once, and the
instance's work with it; one that only half-closes counts as gone, as with nginx and Go.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, ClassVar, Final, cast

from activator_replacement.exchange import DONE, PIPED, RESPONDING, HttpExchange
from activator_replacement.http2.client import Http2Client
from activator_replacement.refusals import CLOSING, response
from activator_replacement.seam import Refusal
from activator_replacement.upstream import reset
from kserve_ext.wire.http1 import EMBEDDED, Grammar, Malformed, RequestHead, scan_request
from kserve_ext.wire.http1_absolute import origin_form
from kserve_ext.wire.http1_forward import Hop

if TYPE_CHECKING:
    from activator_replacement.plane import Plane

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n"
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class ClientProtocol(asyncio.Protocol):
    #: What a subclass with another dialect exchanges, beside its methods.
    grammar: ClassVar[Grammar] = EMBEDDED
    #: What takes over when the client speaks HTTP/2.
    http2_type: ClassVar[type[Http2Client]] = Http2Client

    hop: Hop  # made when it is connected

    __slots__ = (
        "_buffer",
        "_closing",
        "_feeding",
        "_lingering",
        "_quiet_s",
        "_scanned",
        "_unsent",
        "close_after",
        "exchange",
        "hop",
        "plane",
        "reading",
        "reset_on_abort",
        "transport",
        "write_paused",
    )

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.transport: asyncio.Transport = cast(
            "asyncio.Transport", None
        )  # set before anything else is called
        self.exchange: HttpExchange | None = None
        self.reading = True
        self.write_paused = False
        self.close_after = False  # the exchange under way is this connection's last
        self.reset_on_abort = False  # its body ends with the connection
        self._buffer = b""  # of a head, or of pipelined requests
        self._scanned = 0  # part of it without the end of a head
        self._feeding = False
        self._closing = False  # nothing of the client is looked at any more
        self._lingering = False
        self._quiet_s = 0.0  # since what the state waits for last moved
        self._unsent = 0

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        plane = self.plane
        plane.counters.accepted += 1
        peer = transport.get_extra_info("peername")
        self.hop = Hop(peer[0] if isinstance(peer, tuple) and peer else "unknown")
        self.transport.set_write_buffer_limits(high=plane.limits.write_buffer_bytes)
        plane.clients.add(self)
        if len(plane.clients) > plane.limits.connections:
            plane.counters.refused_connections += 1
            self.reject(503, f"this function serves at most {plane.limits.connections} connections")

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            if self._closing:
                return
            self._buffer = self._buffer + data if self._buffer else data
            self._feed()
        elif not exchange.body_done:
            self._quiet_s = 0.0
            try:
                rest = exchange.receive(data)
            except Malformed as malformed:
                exchange.malformed(malformed.reason)
                return
            if rest:
                self._read_ahead(rest)
        elif exchange.state == PIPED and exchange.upstream is not None:
            exchange.upstream.write(data)
        else:
            self._read_ahead(data)

    def eof_received(self) -> None:
        exchange = self.exchange
        if exchange is None:
            self._closing = True
            self.transport.close()
        elif exchange.state == PIPED and exchange.upstream is not None:
            exchange.upstream.finish_writing()
            exchange.upstream = None
            exchange.completed()
        else:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self.plane.clients.discard(self)
        exchange = self.exchange
        if exchange is not None:
            self.exchange = None
            exchange.client_gone()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._quiet_s = 0.0
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._quiet_s = 0.0
        if self.exchange is not None:
            if self.exchange.upstream is not None:
                self.exchange.upstream.resume_reading()
        elif not self._closing:
            self._feed()

    # --- requests

    def _feed(self) -> None:
        """Begins exchanges as long as there are heads and none is under way."""
        if self._feeding:
            return
        self._feeding = True
        while self._buffer and self.exchange is None and not self.write_paused and not self._closing:
            self._begin(self._buffer)
            if self._scanned:
                break
        self._feeding = False
        if not self.reading and not self._closing and (self.exchange is None or not self._buffer):
            exchange = self.exchange
            if exchange is None or exchange.body_done:
                self.resume_reading()

    def _begin(self, data: bytes) -> None:
        plane = self.plane
        limit = plane.limits.head_bytes
        size = data.find(b"\r\n\r\n", self._scanned - 3 if self._scanned > 3 else 0) + 4
        if size == 3 or size > limit:
            if len(data) > limit:
                self.reject(431, f"the head is longer than {limit} bytes")
            elif data.count(b"\n", self._scanned) != data.count(b"\r\n", max(0, self._scanned - 1)):
                self.reject(400, "line ends are CR LF, LF does not stand alone")
            else:
                if not self._scanned:
                    self._quiet_s = 0.0
                self._scanned = len(data)
            return
        self._scanned = 0
        self._quiet_s = 0.0
        try:
            facts = scan_request(data, size, self.grammar)
        except Malformed as malformed:
            head = origin_form(data[:size])
            if head is None:
                self.reject(malformed.status, malformed.reason)
            else:
                self._begin(head + data[size:])
            return
        whole = len(data) == size
        plane.counters.requests += 1
        exchange = self.new_exchange(facts, data if whole else data[:size], plane.now())
        self.exchange = exchange
        self.close_after = not facts.keep_alive or not facts.minor
        self._buffer = b""
        if not whole:
            self._buffer = data[size:]
            if not exchange.body_done:
                try:
                    self._buffer = exchange.receive(self._buffer)
                except Malformed as malformed:
                    exchange.state = DONE
                    self.answer(exchange, 400, malformed.reason)
                    return
        self.begun(exchange)

    def new_exchange(self, facts: RequestHead, head: bytes, now: float) -> HttpExchange:
        return HttpExchange(self, facts, head, now)

    def begun(self, exchange: HttpExchange) -> None:
        """Its head is read, and what came with it of its body."""
        facts = exchange.facts
        if facts.h2c and exchange.body_done:
            rest = self._buffer
            http2 = self._hand_over()
            http2.upgraded(exchange.head)
            if rest:
                http2.data_received(rest)
            return
        target = self.plane.dispatch.resolve(facts.host, facts.namespace, facts.revision)
        if isinstance(target, Refusal):
            exchange.state = DONE
            self.answer(exchange, target.status, target.reason, target.retry_after_s)
        else:
            exchange.submit(target)

    def _read_ahead(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if len(self._buffer) > self.plane.limits.pipelined_bytes:
            self.pause_reading()

    def pause_reading(self) -> None:
        if self.reading and not self._closing:
            self.reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.reading and not self.transport.is_closing():
            self.reading = True
            self._quiet_s = 0.0
            self.transport.resume_reading()

    # --- answers

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def answer(self, exchange: HttpExchange, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        """Answers an exchange that is DONE with an error of our own."""
        if self.exchange is not exchange:
            return
        self.plane.counters.refused(status)
        if status in CLOSING or not exchange.body_done or self.plane.draining:
            self.close_after = True
        to_head = exchange.facts.method == b"HEAD"
        self.transport.write(self.refusal(status, reason, retry_after_s, exchange.request_id, to_head))
        self.exchange_done(exchange)

    def refusal(
        self, status: int, reason: str, retry_after_s: float, request_id: bytes, to_head: bool
    ) -> bytes:
        """The whole answer in this dialect; it says so if the connection ends with it."""
        return response(
            status, reason, retry_after_s, request_id=request_id, close=self.close_after, to_head=to_head
        )

    def reject(self, status: int, reason: str) -> None:
        """Answers what never became an exchange; the connection ends. HTTP/2 begins with what is none, too."""
        if self._buffer.startswith(_PREFACE):
            data = self._buffer
            self._hand_over().data_received(data)
            return
        self.plane.counters.refused(status)
        self.close_after = True
        self.transport.write(self.refusal(status, reason, 0.0, b"", False))
        self._linger()

    def _hand_over(self) -> Http2Client:
        """The connection goes on in HTTP/2."""
        self._closing = True
        self._buffer = b""
        self.exchange = None
        self.plane.clients.discard(self)
        return self.http2_type(self.plane, self.transport)

    @property
    def active(self) -> int:
        """Exchanges under way."""
        return self.exchange is not None

    def exchange_done(self, exchange: HttpExchange) -> None:
        if self.exchange is not exchange:
            return
        self.exchange = None
        self._quiet_s = 0.0
        if not exchange.body_done:
            self._linger()
        elif self.close_after or exchange.facts.upgrade or self.plane.draining:
            if self._buffer:
                self._linger()
            else:
                self._closing = True
                self.transport.close()
        elif self._buffer or not self.reading:
            self._feed()

    def pipe(self, exchange: HttpExchange) -> None:
        """The connection was upgraded: what was read ahead goes first."""
        self.close_after = True
        if self._buffer and exchange.upstream is not None:
            exchange.upstream.write(self._buffer)
            self._buffer = b""
        self.resume_reading()

    def abort(self) -> None:
        """Ends the connection in a way that can't be taken for the end of a body."""
        self._closing = True
        exchange = self.exchange
        if exchange is not None:
            self.exchange = None
            exchange.client_gone()
        if self.reset_on_abort:
            reset(self.transport)
        else:
            self.transport.abort()

    def _linger(self) -> None:
        """Closes our half, then drops what still comes: closing both would destroy the answer on its way."""
        self._closing = True
        self._lingering = True
        self._buffer = b""
        self._quiet_s = 0.0
        self.resume_reading()
        if not self.transport.is_closing() and self.transport.can_write_eof():  # TLS has no half
            self.transport.write_eof()

    # --- limits

    def drain(self) -> None:
        """Closes the connection as soon as no exchange is under way, nor the head of one."""
        if self.exchange is None and not self._closing and not self._buffer:
            self._closing = True
            self.transport.close()

    def check(self, now: float) -> None:
        """Called every tick: ends what takes too long."""
        limits = self.plane.limits
        exchange = self.exchange
        self._quiet_s += limits.tick_s
        if exchange is None:
            if self._lingering:
                if self._quiet_s > limits.linger_s:
                    self.transport.abort()
            elif self.write_paused or self._closing:
                self._check_stall()
            elif self._buffer:
                if self._quiet_s > limits.head_timeout_s:
                    self.reject(408, f"the head was not complete within {limits.head_timeout_s:g} s")
            elif self._quiet_s > limits.idle_timeout_s:
                self._closing = True
                self.transport.close()
            return
        if exchange.state < RESPONDING and now - exchange.started > exchange.timeout_s:
            exchange.timed_out()
        elif self.write_paused:
            self._check_stall()
        elif not self.reading:
            if self._hung_up():
                self.abort()
        elif not exchange.body_done and not exchange.facts.expect and self._quiet_s > limits.stall_timeout_s:
            if exchange.state < RESPONDING:
                exchange.stalled()
            else:
                self.abort()

    def _check_stall(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent = unsent
            self._quiet_s = 0.0
        elif self._quiet_s > self.plane.limits.stall_timeout_s:
            self.abort()

    def _hung_up(self) -> bool:
        """A client that isn't read can't be heard closing: ask the kernel."""
        sock = self.transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), _GONE)
        return bool(poll.poll(0))
