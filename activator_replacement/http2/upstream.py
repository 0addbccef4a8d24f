"""The connection to an instance over HTTP/2: hands what is read to the exchange of each stream.

Cleartext by prior knowledge. It is shared by the exchanges of all clients, so whatever one of them does ends one
stream, never the connection. When it is lost, or the instance says GOAWAY, each exchange decides for itself.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from activator_replacement.http2.exchange import Http2Exchange
from activator_replacement.http2.peer import Peer
from activator_replacement.upstream import keep_alive
from kserve_ext.wire.http2.connection import Connection
from kserve_ext.wire.http2.frames import Violation
from kserve_ext.wire.http2.streams import Stream

if TYPE_CHECKING:
    from activator_replacement.plane import Plane


class Http2Upstream(Peer):
    __slots__ = ("_awaiting", "_plane", "addr", "closed", "idle_since")

    def __init__(self, plane: Plane, addr: str) -> None:
        super().__init__(plane.http2_cache.outgoing)
        self._plane = plane
        self.addr = addr
        self.connection = Connection(self, plane.loop.time(), client=True, list_bytes=plane.limits.head_bytes)
        self.closed = False
        self.idle_since = 0.0  # 0: not idle when it was last looked at
        #: Exchanges with more header fields than everybody takes.
        self._awaiting: list[Http2Exchange] = []

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=self._plane.limits.write_buffer_bytes)
        keep_alive(transport.get_extra_info("socket"))
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        connection = self.connection
        try:
            connection.receive(data, self._plane.loop.time())
        except Violation as violation:
            connection.goaway(violation.code, violation.reason)
            self._lost(f"broke the protocol of HTTP/2 ({violation.reason})")
            return
        if self._awaiting and connection.introduced:
            self._introduced()
        if connection.going and not connection.streams:
            self.close()

    def eof_received(self) -> None:
        self._lost("closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(f"broke the connection ({error})" if error else "closed the connection")

    # --- what the connection read

    def opened(self, stream: Stream, block: bytes, end: bool) -> None:
        raise RuntimeError("an instance began a stream")  # Connection never says so of a server

    def headers(self, stream: Stream, block: bytes, end: bool) -> None:
        exchange: Http2Exchange = stream.exchange
        exchange.respond(block, end)

    def data(self, stream: Stream, payload: bytes, end: bool) -> None:
        exchange: Http2Exchange = stream.exchange
        exchange.pass_on(payload, end)

    def reset(self, stream: Stream, code: int) -> None:
        exchange: Http2Exchange = stream.exchange
        exchange.reset_by_instance(code)

    def drained(self, stream: Stream, size: int) -> None:
        exchange: Http2Exchange = stream.exchange
        exchange.went(size)

    def went_away(self, unprocessed: list[Stream], code: int) -> None:
        for stream in unprocessed:
            exchange: Http2Exchange = stream.exchange
            exchange.lost(f"goes away (error {code})", True)

    def await_settings(self, exchange: Http2Exchange) -> None:
        """It is `connected` again when the instance's settings have come."""
        self._awaiting.append(exchange)

    def _introduced(self) -> None:
        awaiting = self._awaiting
        self._awaiting = []
        for exchange in awaiting:
            if self.room():
                exchange.connected(self)
            else:
                self._plane.http2_cache.open(self.addr, exchange)

    def _given_up(self, reason: str) -> None:
        awaiting = self._awaiting
        self._awaiting = []
        for exchange in awaiting:
            exchange.not_connected(reason)

    # --- for the connections that are kept

    def usable(self) -> bool:
        return not self.closed and not self.transport.is_closing()

    def room(self) -> bool:
        """One more exchange may be sent on it."""
        return self.connection.room() and not self.closed and not self.transport.is_closing()

    def close(self) -> None:
        """Nothing is under way."""
        if not self.closed:
            self.closed = True
            self.flush()
            self.transport.close()
            self._plane.http2_cache.lost(self)
            self._given_up("closed the connection")

    def _lost(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self.flush()
        self.transport.close()
        self._plane.http2_cache.lost(self)
        streams = list(self.connection.streams.values())
        self.connection.streams.clear()
        self.connection.out.clear()
        for stream in streams:
            exchange: Http2Exchange = stream.exchange
            exchange.lost(reason)
        self._given_up(reason)
