"""Http2Connections: the connections to instances over HTTP/2, kept per address and shared by all exchanges.

An address gets another connection when every one that is open has as many streams as its server takes, or goes away;
who asks while one is being opened waits for that one. Idle ones are closed after a while, with GOAWAY.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, Protocol, cast

from activator_replacement.connections import ConnectionCache, Upstream
from activator_replacement.http2.peer import Outgoing
from activator_replacement.http2.upstream import Http2Upstream
from kserve_ext.wire.http2.frames import NO_ERROR
from kserve_ext.wire.http2.sending import FIRST_STREAMS

IDLE_S: Final = 90.0


class Waiting(Protocol):
    """Who asked for a connection."""

    def connected(self, upstream: Http2Upstream) -> bool:
        """False: nobody waits for it any more."""

    def not_connected(self, reason: str) -> None: ...


class _Opening:
    """A connection that is being opened, and who waits for it."""

    def __init__(self, owner: Http2Connections, addr: str) -> None:
        self.owner = owner
        self.addr = addr
        self.waiting: list[Waiting] = []

    def connected(self, upstream: Upstream) -> bool:
        self.owner.opened_for(self, cast("Http2Upstream", upstream))
        return True

    def not_connected(self, reason: str) -> None:
        self.owner.closed_for(self, reason)


class Http2Connections:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[str], Http2Upstream],
        *,
        per_addr: int = 256,
        connect_timeout_s: float = 5.0,
        idle_s: float = IDLE_S,
    ) -> None:
        self._loop = loop
        self._per_addr = per_addr
        self._idle_s = idle_s
        self._open: dict[str, list[Http2Upstream]] = {}  # the one that had room last at the front
        self._opening: dict[str, list[_Opening]] = {}
        #: Only dials: nothing is ever idle in it.
        self._dialer = ConnectionCache(loop, make, connect_timeout_s=connect_timeout_s)
        self.reused = 0
        self.outgoing = Outgoing(loop)  # of clients, too

    @property
    def opened(self) -> int:
        return self._dialer.opened

    @property
    def open_count(self) -> int:
        return sum(map(len, self._open.values()))

    def encrypt(self, tls: Callable[[str], tuple[ssl.SSLContext, str]]) -> None:
        """Connections are made with this context and server name from here on."""
        self._dialer.tls = tls

    def take(self, addr: str) -> Http2Upstream | None:
        """A connection with room for one more stream, or None: then `open` one."""
        kept = self._open.get(addr)
        if kept is None:
            return None
        for upstream in kept:
            if upstream.room():
                if upstream is not kept[0]:
                    kept.remove(upstream)
                    kept.insert(0, upstream)
                upstream.idle_since = 0.0
                self.reused += 1
                return upstream
        return None

    def open(self, addr: str, waiting: Waiting) -> None:
        """Later `waiting.connected` or `waiting.not_connected`, once."""
        openings = self._opening.setdefault(addr, [])
        if openings and len(openings[-1].waiting) < FIRST_STREAMS:
            openings[-1].waiting.append(waiting)
            return
        if len(openings) + len(self._open.get(addr, ())) >= self._per_addr:
            reason = f"{addr} has {self._per_addr} connections, all in use"
            self._loop.call_soon(waiting.not_connected, reason)
            return
        opening = _Opening(self, addr)
        opening.waiting.append(waiting)
        openings.append(opening)
        self._dialer.open(addr, opening)

    def opened_for(self, opening: _Opening, upstream: Http2Upstream) -> None:
        self._done(opening)
        self._open.setdefault(opening.addr, []).insert(0, upstream)
        for waiting in opening.waiting:
            if upstream.room():
                waiting.connected(upstream)
            else:
                self.open(opening.addr, waiting)

    def closed_for(self, opening: _Opening, reason: str) -> None:
        self._done(opening)
        for waiting in opening.waiting:
            waiting.not_connected(reason)

    def _done(self, opening: _Opening) -> None:
        openings = self._opening[opening.addr]
        openings.remove(opening)
        if not openings:
            del self._opening[opening.addr]

    def lost(self, upstream: Http2Upstream) -> None:
        kept = self._open.get(upstream.addr)
        if kept and upstream in kept:
            kept.remove(upstream)
            if not kept:
                del self._open[upstream.addr]

    def sweep(self) -> None:
        """Closes what has been idle for too long."""
        now = self._loop.time()
        for upstream in [upstream for kept in self._open.values() for upstream in kept]:
            if upstream.connection.streams:
                upstream.idle_since = 0.0
            elif not upstream.idle_since:
                upstream.idle_since = now
            elif now - upstream.idle_since > self._idle_s or upstream.connection.going:
                upstream.connection.goaway(NO_ERROR)
                upstream.close()

    def close(self) -> None:
        self._dialer.close()
        for upstream in [upstream for kept in self._open.values() for upstream in kept]:
            upstream.transport.abort()
        self._open.clear()
