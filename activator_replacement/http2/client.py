"""The client's side of an HTTP/2 connection: its streams become exchanges, and errors of our own their answers.

Cleartext only, as Knative's listeners: by prior knowledge (the preface), or after an Upgrade of HTTP/1.1, both on
the ports of HTTP/1.1. Requests that come in one read are begun after all of it was looked at: those that were reset
in the same read never reach Dispatch, and a body that came at once is known. A client that reads slowly only stops
its own streams (windows), until it stalls.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, ClassVar, Final

from activator_replacement.exchange import DONE, RESPONDING
from activator_replacement.http2.exchange import Http2Exchange
from activator_replacement.http2.peer import Peer
from activator_replacement.refusals import response
from activator_replacement.seam import Refusal
from kserve_ext.wire.http1 import Malformed, header
from kserve_ext.wire.http2.connection import Connection
from kserve_ext.wire.http2.fields import TooLarge
from kserve_ext.wire.http2.forward import hop
from kserve_ext.wire.http2.frames import (
    ENHANCE_YOUR_CALM,
    NO_ERROR,
    PROTOCOL_ERROR,
    Violation,
    read_settings,
)
from kserve_ext.wire.http2.headers import RequestBlock, scan_request
from kserve_ext.wire.http2.sending import UNFLUSHED_BYTES
from kserve_ext.wire.http2.streams import Stream
from kserve_ext.wire.http2.translate import answer_block, request_block

if TYPE_CHECKING:
    from activator_replacement.plane import Plane

#: Of header blocks and trailers of a connection's requests that may still have to be sent (again).
HEADER_BYTES: Final = 4 << 20
_SMALL: Final = 4096  # what so many are of, as many as there may be at once, is not counted
BUFFERED_BYTES: Final = 4 << 20  # of request bodies that do not go on; then all of the connection's wait
#: Answers to what a client sends without reading: beyond this much unsent, DATA not counted, it is cut off.
_UNSENT_BYTES: Final = UNFLUSHED_BYTES + (1 << 20)
_GRACE_S: Final = 1.0  # from the first GOAWAY of a drain to the one that names the last stream


class Http2Client(Peer):
    #: What a subclass with another dialect exchanges, beside its methods.
    exchange_type: ClassVar[type[Http2Exchange]] = Http2Exchange
    repeated: ClassVar[bool] = False  # Knative's headers may come twice
    streams: ClassVar[int] = 1000  # of a connection at once

    __slots__ = (
        "_block_s",
        "_closing",
        "_drain_at",
        "_new",
        "_quiet_s",
        "_unsent",
        "exchanges",
        "hop",
        "plane",
    )

    def __init__(self, plane: Plane, transport: asyncio.Transport) -> None:
        """Takes over a connection that was accepted for HTTP/1.1."""
        super().__init__(plane.http2_cache.outgoing)
        self.plane = plane
        self.transport = transport
        limits = plane.limits
        self.connection = Connection(
            self,
            plane.loop.time(),
            client=False,
            max_streams=self.streams,
            list_bytes=limits.head_bytes,
            buffered_bytes=BUFFERED_BYTES,
        )
        peer = transport.get_extra_info("peername")
        self.hop = hop(peer[0] if isinstance(peer, tuple) and peer else "unknown")
        self.exchanges: set[Http2Exchange] = set()
        self._new: list[Http2Exchange] = []
        self._closing = False
        self._drain_at = 0.0
        self._quiet_s = 0.0
        self._block_s = 0.0  # since a header block was begun that has not ended
        self._unsent = 0
        transport.set_protocol(self)
        plane.clients.add(self)
        self.wake()

    def upgraded(self, head: bytes) -> None:
        """The connection's first stream is the request that asked for HTTP/2."""
        value = header(head, b"http2-settings") or b""
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        )
        try:
            settings = base64.b64decode(value + b"=" * (-len(value) % 4), b"-_", validate=True)
            self.connection.apply(read_settings(settings))
            self.connection.upgraded(request_block(head))
        except binascii.Error:
            self._violated(Violation(PROTOCOL_ERROR, "HTTP2-Settings: not base64url"))
        except Violation as violation:
            self._violated(violation)
        else:
            self._begin()

    @property
    def active(self) -> int:
        """Exchanges under way."""
        return len(self.exchanges)

    # --- asyncio

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._quiet_s = 0.0
        try:
            self.connection.receive(data, self.plane.loop.time())
        except Violation as violation:
            self._violated(violation)
            return
        if self._new:
            self._begin()

    def eof_received(self) -> None:
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self.plane.clients.discard(self)
        self._all_gone()

    def flush(self) -> None:
        super().flush()
        if self.connection.stuck and self.transport.get_write_buffer_size() > (
            self.plane.limits.write_buffer_bytes + _UNSENT_BYTES
        ):
            self.abort()

    # --- what the connection read

    def opened(self, stream: Stream, block: bytes, end: bool) -> None:
        plane = self.plane
        try:
            facts = scan_request(block, self.repeated, plane.limits.head_bytes)
            if end and facts.length > 0:
                raise Malformed("a content-length without a body")
        except TooLarge as error:
            self._too_large(stream, error.method, end)
            return
        except Malformed:
            self.connection.charge(stream)
            self.connection.reset(stream, PROTOCOL_ERROR)
            return
        if facts.kept_bytes > _SMALL and self.crowded(facts.kept_bytes):
            self.connection.refuse(stream)
            return
        plane.counters.requests += 1
        exchange = self.exchange_type(self, stream, facts, end, plane.loop.time())
        stream.exchange = exchange
        self.exchanges.add(exchange)
        self._new.append(exchange)

    def _too_large(self, stream: Stream, method: bytes, end: bool) -> None:
        """Answers a request of which not everything was read."""
        plane = self.plane
        plane.counters.requests += 1
        facts = RequestBlock(b"")
        facts.method = method or b"HEAD"  # an answer to which has no body
        exchange = self.exchange_type(self, stream, facts, end, plane.loop.time())
        exchange.state = DONE
        stream.exchange = exchange
        self.exchanges.add(exchange)
        self.answer(exchange, 431, f"the header fields are more than {plane.limits.head_bytes} bytes")

    def crowded(self, more: int) -> bool:
        """So much more would be too much in header blocks and trailers."""
        if more <= _SMALL:
            return False
        return more + sum(exchange.kept_bytes for exchange in self.exchanges) > HEADER_BYTES

    def headers(self, stream: Stream, block: bytes, end: bool) -> None:
        exchange: Http2Exchange = stream.exchange
        if exchange.state != DONE:
            exchange.receive_trailers(block)

    def data(self, stream: Stream, payload: bytes, end: bool) -> None:
        exchange: Http2Exchange = stream.exchange
        if exchange.state != DONE:
            exchange.receive(payload, end)
        else:
            self.connection.dropped(stream)

    def reset(self, stream: Stream, code: int) -> None:
        exchange: Http2Exchange | None = stream.exchange
        if exchange is not None:
            exchange.client_gone()
            self.exchanges.discard(exchange)

    def drained(self, stream: Stream, size: int) -> None:
        exchange: Http2Exchange = stream.exchange
        if exchange.state == RESPONDING:
            exchange.delivered(size)
            if not stream.open_out:
                exchange.completed()
        elif not stream.open_out:
            self.exchange_done(exchange)

    def went_away(self, unprocessed: list[Stream], code: int) -> None:
        """Nothing: it goes when its streams have ended."""

    def _begin(self) -> None:
        new = self._new
        self._new = []
        for exchange in new:
            if exchange.state != DONE:
                self.begun(exchange)

    def begun(self, exchange: Http2Exchange) -> None:
        """Its header block is read, and what came with it of its body."""
        facts = exchange.facts
        target = self.plane.dispatch.resolve(facts.authority, facts.namespace, facts.revision)
        if isinstance(target, Refusal):
            exchange.state = DONE
            self.answer(exchange, target.status, target.reason, target.retry_after_s)
        else:
            exchange.submit(target)

    # --- answers

    def answer(self, exchange: Http2Exchange, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        """Answers an exchange that is DONE with an error of our own."""
        self.plane.counters.refused(status)
        self.reply(exchange, self.refusal(status, reason, retry_after_s, exchange.request_id))

    def refusal(self, status: int, reason: str, retry_after_s: float, request_id: bytes) -> bytes:
        """The whole answer in this dialect, as for HTTP/1.1."""
        return response(status, reason, retry_after_s, request_id=request_id)

    def reply(self, exchange: Http2Exchange, answer: bytes) -> None:
        down = exchange.down
        if not down.open_out:
            return
        _, block, body = answer_block(answer)
        if exchange.facts.method == b"HEAD":
            body = b""
        connection = self.connection
        connection.send_headers(down, block, not body)
        if body:
            connection.send_data(down, body, True)
        self.exchange_done(exchange)

    def break_off(self, exchange: Http2Exchange, code: int) -> None:
        """Ends an exchange that is DONE without an answer, or in the midst of one."""
        self.connection.reset(exchange.down, code)
        self.exchanges.discard(exchange)

    def exchange_done(self, exchange: Http2Exchange) -> None:
        """Its answer has left, or waits in its queue."""
        self.exchanges.discard(exchange)
        down = exchange.down
        if down.owed:
            self.connection.dropped(down)
        if not down.open_out:
            if down.open_in:
                self.connection.reset(down, NO_ERROR)
            down.exchange = None  # nothing comes of it any more, and nobody has to look for a circle

    # --- ends

    def _violated(self, violation: Violation) -> None:
        self.connection.goaway(violation.code, violation.reason)
        self.close()

    def close(self) -> None:
        """What is to be sent still goes out."""
        if not self._closing:
            self._closing = True
            self.flush()
            self._all_gone()
            self.connection.out.clear()
            self.transport.close()

    def abort(self) -> None:
        self._closing = True
        self._all_gone()
        self.transport.abort()

    def _all_gone(self) -> None:
        exchanges = list(self.exchanges)
        self.exchanges.clear()
        for exchange in exchanges:
            exchange.client_gone()

    def drain(self) -> None:
        """No more streams; those that are on their way are still served."""
        if not self._drain_at:
            self._drain_at = self.plane.loop.time() + _GRACE_S
            self.connection.goaway(NO_ERROR, soon=True)

    # --- limits

    def check(self, now: float) -> None:
        """Called every tick: ends what takes too long."""
        limits = self.plane.limits
        self._quiet_s += limits.tick_s
        for exchange in list(self.exchanges):
            self.check_exchange(exchange, now)
        if self._closing or self.connection.stuck:
            unsent = self.transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent = unsent
                self._quiet_s = 0.0
            elif self._quiet_s > limits.stall_timeout_s:
                self.abort()
            return
        if self._drain_at and now >= self._drain_at and not self.connection.going:
            self.connection.goaway(NO_ERROR)
        self._block_s = self._block_s + limits.tick_s if self.connection.within_block else 0.0
        if self._block_s > limits.head_timeout_s:
            self._violated(Violation(ENHANCE_YOUR_CALM, "a header block that does not end"))
        elif not self.connection.streams and not self.exchanges:
            if self.connection.going:
                self.close()
            elif self._quiet_s > limits.idle_timeout_s:
                self.connection.goaway(NO_ERROR)
                self.close()

    def check_exchange(self, exchange: Http2Exchange, now: float) -> None:
        if exchange.state < RESPONDING:
            if now - exchange.started > exchange.timeout_s:
                exchange.timed_out()
            return
        queued = exchange.down.queued
        if not queued or queued != exchange.waited:
            exchange.waited = queued
            exchange.quiet_s = 0.0
            return
        limits = self.plane.limits
        exchange.quiet_s += limits.tick_s
        if exchange.quiet_s > limits.stall_timeout_s:
            exchange.stalled()
