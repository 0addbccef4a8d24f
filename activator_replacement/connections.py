"""ConnectionCache: idle connections to instances, kept per address, the most recently used first.

It never opens a connection for an address that nobody asked for, never hands out one that is known to be closed
or has been idle longer than servers keep theirs (uvicorn: 5 s), and is bounded per address and as a whole.

Hot dialect (take, give): slots, no exception and no closure per request.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, cast


class Upstream(Protocol):
    """What the cache knows of a connection to an instance."""

    addr: str
    idle_since: float

    def usable(self) -> bool: ...
    def close(self) -> None: ...


class Waiting(Protocol):
    """Who asked for a new connection."""

    def connected(self, upstream: Upstream) -> bool:
        """False: nobody waits for it any more."""

    def not_connected(self, reason: str) -> None: ...


class ConnectionCache:
    __slots__ = (
        "_connect_timeout_s",
        "_connecting",
        "_idle",
        "_idle_s",
        "_loop",
        "_make",
        "_now",
        "_per_addr",
        "_total",
        "idle_count",
        "opened",
        "reused",
        "tls",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[str], asyncio.Protocol],
        *,
        idle_s: float = 4.0,
        per_addr: int = 256,
        total: int = 4096,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self._loop = loop
        self._now: Callable[[], float] = loop.time
        self._make = make  # a protocol that is an Upstream
        self._idle_s = idle_s
        self._per_addr = per_addr
        self._total = total
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[str, list[Upstream]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        #: Context and server name for an address, where connections are to be encrypted.
        self.tls: Callable[[str], tuple[ssl.SSLContext, str]] | None = None
        self.idle_count = 0
        self.opened = 0
        self.reused = 0

    def take(self, addr: str) -> Upstream | None:
        """An idle connection, or None: then `open` one."""
        stack = self._idle.get(addr)
        oldest = self._now() - self._idle_s
        while stack:
            upstream = stack.pop()
            self.idle_count -= 1
            if upstream.usable() and upstream.idle_since >= oldest:
                self.reused += 1
                return upstream
            upstream.close()
        return None

    def give(self, upstream: Upstream) -> None:
        """Takes back a connection that is at rest between two exchanges."""
        stack = self._idle.get(upstream.addr)
        if stack is None:
            stack = self._idle[upstream.addr] = []
        if len(stack) >= self._per_addr or self.idle_count >= self._total:
            upstream.close()
            return
        upstream.idle_since = self._now()
        stack.append(upstream)
        self.idle_count += 1

    def lost(self, upstream: Upstream) -> None:
        """An idle connection was closed by its instance."""
        stack = self._idle.get(upstream.addr)
        if stack and upstream in stack:
            stack.remove(upstream)
            self.idle_count -= 1

    def open(self, addr: str, waiting: Waiting) -> None:
        """Later `waiting.connected` or `waiting.not_connected`, once."""
        task = self._loop.create_task(self._open(addr, waiting))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _open(self, addr: str, waiting: Waiting) -> None:
        host, _, port = addr.rpartition(":")
        context, name = self.tls(addr) if self.tls is not None else (None, None)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, upstream = await self._loop.create_connection(
                    lambda: self._make(addr), host.strip("[]"), int(port), ssl=context, server_hostname=name
                )
        except TimeoutError:
            waiting.not_connected(f"{addr} did not accept a connection within {self._connect_timeout_s:g} s")
        except (OSError, ValueError) as error:
            waiting.not_connected(f"{addr} refused the connection ({error})")
        else:
            self.opened += 1
            self._opened(cast("Upstream", upstream), waiting)

    def _opened(self, upstream: Upstream, waiting: Waiting) -> None:
        if not upstream.usable():
            waiting.not_connected(f"{upstream.addr} closed the connection at once")
        elif not waiting.connected(upstream):
            self.give(upstream)

    def sweep(self) -> None:
        """Closes what has been idle for too long, and forgets addresses without connections."""
        oldest = self._now() - self._idle_s
        for addr in list(self._idle):
            stack = self._idle[addr]
            keep = 0
            while keep < len(stack) and stack[keep].idle_since < oldest:
                keep += 1
            for upstream in stack[:keep]:
                self.idle_count -= 1
                upstream.close()
            del stack[:keep]
            if not stack:
                del self._idle[addr]

    def close(self) -> None:
        for task in self._connecting:
            task.cancel()
        for stack in self._idle.values():
            for upstream in stack:
                upstream.close()
        self._idle.clear()
        self.idle_count = 0
