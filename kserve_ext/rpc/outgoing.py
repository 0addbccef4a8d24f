"""The connections that this process dials: one a peer, kept by core/connection_cache.py, opened ahead where asked.

A request that its connection was given and had not written when it died goes to a new one, once it has one; whatever
was written fails, as nobody knows what became of it. Dialling is one task a connection; a call is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Final

from kserve_ext.core.connection_cache import LOOK_S, PONG_S, WARM_AT_ONCE, ConnectionCache
from kserve_ext.rpc.connection import Connection
from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.mutual_tls import Identity, connect
from kserve_ext.rpc.pending import Done, finish
from kserve_ext.wire.frames import NO_SPAN, NO_TRACE, ErrorCode
from kserve_ext.wire.messages import METHODS, Message, Ping

if TYPE_CHECKING:
    from kserve_ext.rpc.rpc import Rpc

DIAL_TIMEOUT_S: Final = 2.0
PING: Final = next(number for number, (request, _) in METHODS.items() if request is Ping)


class Outgoing:
    """`get` on the hot path, `missed` when that found nothing."""

    def __init__(self, rpc: Rpc, identity: Identity | None, bound: int) -> None:
        self.cache: ConnectionCache[Connection] = ConnectionCache(bound, monotonic())
        self.get = self.cache.get
        self._rpc = rpc
        self._identity = identity
        self._misses = self._repeated = 0
        #: to be opened ahead of calls, the next one last; and those being opened for that
        self._to_warm: list[str] = []
        self._warming: set[Connection] = set()
        self.dials: set[asyncio.Task[None]] = set()
        self._look_at: asyncio.TimerHandle | None = None
        self._closing = False

    def connections(self) -> list[Connection]:
        return self.cache.connections()

    def counts(self, calls: int) -> dict[str, int]:
        """Of so many calls to others."""
        cache = self.cache
        return {
            "kept": len(cache),
            "bound": cache.bound,
            "hits": calls - self._misses,
            "misses": self._misses,
            "dials": cache.dials,
            "evictions": cache.evictions,
            "pings": cache.pings,
            "dead": cache.dead,
            "repeated": self._repeated,
        }

    def missed(self, addr: str, loop: asyncio.AbstractEventLoop) -> Connection:
        """A new connection for a call."""
        self._misses += 1
        return self._connect(addr, loop)

    def warm(self, addrs: Iterable[str]) -> None:
        if not self._closing:
            missing = self.cache.missing(addrs, self._rpc.name)
            if missing:
                self._to_warm += missing[::-1]
                self._warm_next()

    def close(self) -> None:
        """Opens nothing from here on; what is open is ended by whoever calls."""
        self._closing = True
        self._to_warm = []
        if self._look_at is not None:
            self._look_at.cancel()
        for task in self.dials:
            task.cancel()

    # --- for Connection

    def again(self, addr: str, request: bytes, done: Done, method: int, due: float) -> None:
        """A request that a connection was given and had not written when it died."""
        left = due - monotonic()
        if self._closing or left <= 0:
            why = (
                "this process is closing" if self._closing else "its connection was lost, and its time is up"
            )
            finish(done, RpcError(ErrorCode.UNAVAILABLE, why, addr, sent=False))
            return
        self._repeated += 1
        connection = self.get(addr) or self._connect(addr, asyncio.get_running_loop())
        connection.resume(request, done, method, left)

    def opened(self, connection: Connection) -> None:
        self._warmed(connection)

    def closed(self, connection: Connection) -> None:
        self.cache.drop(connection.addr, connection)
        self._warmed(connection)

    # --- inside

    def _connect(self, addr: str, loop: asyncio.AbstractEventLoop) -> Connection:
        connection = Connection(self._rpc, loop, addr)
        for evicted in self.cache.put(addr, connection, monotonic()):
            evicted.retire()
        task = loop.create_task(self._dial(connection))
        self.dials.add(task)
        task.add_done_callback(self.dials.discard)
        if self._look_at is None:
            self._look_at = loop.call_later(LOOK_S, self._look, loop)
        return connection

    async def _dial(self, connection: Connection) -> None:
        addr, loop = connection.addr, connection.loop
        nobody = False
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                if addr.startswith("unix:"):
                    await loop.create_unix_connection(lambda: connection, addr[5:])
                else:
                    host, _, port = addr.rpartition(":")
                    await connect(lambda: connection, host, int(port), self._identity)
            return
        except TimeoutError:
            why = f"no connection in {DIAL_TIMEOUT_S} s"
        except (OSError, ValueError) as error:
            why = str(error)
            nobody = isinstance(error, ConnectionRefusedError)
        except asyncio.CancelledError:
            connection.drop(RpcError(ErrorCode.UNAVAILABLE, "this process is closing", addr))
            raise
        self._rpc.errors += 1
        connection.drop(RpcError(ErrorCode.UNAVAILABLE, why, addr, nobody=nobody))

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Pings connections on which nothing goes, gives up those that are dead; as long as there are any."""
        look = self.cache.look(monotonic())
        for evicted in look.evicted:
            evicted.retire()
        for dead in look.dead:
            why = "nothing comes from it, not even the answer to a ping"
            dead.drop(RpcError(ErrorCode.UNAVAILABLE, why, dead.addr), abort=True)
        epoch = self._rpc.epoch()
        for quiet in look.ping:
            quiet.call(PING, Ping(), _ignored, PONG_S, epoch, NO_TRACE, NO_SPAN)
        self._look_at = loop.call_later(LOOK_S, self._look, loop) if len(self.cache) else None

    def _warm_next(self) -> None:
        while self._to_warm and len(self._warming) < WARM_AT_ONCE:
            addr = self._to_warm.pop()
            if addr not in self.cache and len(self.cache) < self.cache.bound:
                self._warming.add(self._connect(addr, asyncio.get_running_loop()))

    def _warmed(self, connection: Connection) -> None:
        """It is open, or has ended: the next one's turn."""
        if connection in self._warming:
            self._warming.discard(connection)
            self._warm_next()


def _ignored(reply: Message | RpcError) -> None:
    """Whatever has come, came."""
