"""One address for peers that speak TLS and for those that don't yet: the first bytes say which.

Decides nothing about what is spoken; who is refused is in the log with the reason. Without an identity it isn't
needed: then everything is plain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from kserve_ext.rpc.mutual_tls import HANDSHAKE, Identity

log = logging.getLogger(__name__)

BEGIN_S = 10.0
BACKLOG = 1024
AGAIN_S = 0.1


class Listener:
    """`start` once, `close` once; connections that are open are their protocols' affair."""

    def __init__(
        self, factory: Callable[[], asyncio.BaseProtocol], identity: Identity, *, plain: bool = False
    ) -> None:
        """`plain`: whoever speaks without TLS is let in, and it is the protocol's to say to whom it answers."""
        self._factory = factory
        self._identity = identity
        self._plain = plain
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, host: str | None, port: int) -> tuple[str, int]:
        """The address it listens on."""
        if host is None and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"
        family = socket.AF_INET6 if host is None or ":" in host else socket.AF_INET
        self._socket = socket.create_server(
            (host or "", port), family=family, backlog=BACKLOG, dualstack_ipv6=host is None
        )
        self._socket.setblocking(False)
        self._track(self._accept(self._socket))
        address = self._socket.getsockname()
        return address[0], address[1]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._socket is not None:
            self._socket.close()

    # --- inside

    def _track(self, run: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                accepted, peer = await self._loop.sock_accept(listening)
            except OSError as error:  # no descriptors left: those that wait, wait
                log.error("can't accept connections: %s", error)
                await asyncio.sleep(AGAIN_S)
                continue
            self._track(self._take(accepted, f"{peer[0]}:{peer[1]}"))

    async def _take(self, accepted: socket.socket, peer: str) -> None:
        handed_over = False
        try:
            async with asyncio.timeout(BEGIN_S):
                first = await self._begin(accepted)
            if not first:
                return
            tls = None
            if first == HANDSHAKE:
                tls = self._identity.server
                if tls is None:
                    log.warning("%s wants mutual TLS, and there is no certificate here yet", peer)
                    return
            elif not (
                self._plain or self._identity.allows_plain(peer.rpartition(":")[0], "speaks without TLS")
            ):
                return
            handed_over = True
            await self._loop.connect_accepted_socket(self._factory, accepted, ssl=tls)
        except TimeoutError:
            log.debug("%s says nothing", peer)
        except OSError as error:  # ssl's errors are such
            log.warning("%s was refused: %s", peer, error)
        finally:
            if not handed_over:
                accepted.close()

    async def _begin(self, accepted: socket.socket) -> bytes:
        """Its first bytes, looked at and left where they are: as many as there are of a handshake's beginning."""
        loop = self._loop
        while True:
            with contextlib.suppress(BlockingIOError):
                first = accepted.recv(len(HANDSHAKE), socket.MSG_PEEK)
                if not first or first == HANDSHAKE or not HANDSHAKE.startswith(first):
                    return first
                await asyncio.sleep(AGAIN_S)  # it would be readable at once
                continue
            readable = loop.create_future()
            loop.add_reader(accepted, _wake, readable)
            try:
                await readable
            finally:
                loop.remove_reader(accepted)


async def serve(
    loop: asyncio.AbstractEventLoop, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
) -> tuple[asyncio.Server, int]:
    """Everything plain on host:port, 0 = any free one; which it is."""
    server = await loop.create_server(factory, host, port)
    return server, int(server.sockets[0].getsockname()[1])


def _wake(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
