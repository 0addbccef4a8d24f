"""The websocket to the autoscaler: one connection, made again whenever it breaks; nothing waits for it.

What can't be sent is dropped and counted (the reporter tells state, not events). Whether the autoscaler is reachable
is a metric and a line in the log, never a reason to be unhealthy. In Knative: pkg's websocket/connection.go with the
options of pkg/activator/stat_reporter.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable

import aiohttp

from kserve_ext.core.backoff import pause_s
from kserve_ext.rpc.mutual_tls import Identity
from kserve_ext.rpc.websocket import connect

log = logging.getLogger(__name__)

HANDSHAKE_S = 3.0
PING_S = 10.0 / 3
PONG_S = 10.0
BACKOFF_S = (0.1, 5.0)
#: Unsent messages; a socket that takes none for so long is as good as broken.
MOST_UNSENT = 1000


class StatSink:
    def __init__(
        self, url: str, connected: Callable[[], None] = lambda: None, identity: Identity | None = None
    ) -> None:
        """`connected` is called after each connection; `identity`: for mutual TLS."""
        self.url = url
        self.reachable = False
        self.errors = 0
        self.dropped = 0
        self._connected = connected
        self._identity = identity
        self._unsent: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._problem = ""

    def send(self, message: bytes) -> bool:
        """False: it was dropped."""
        if not self.reachable or len(self._unsent) >= MOST_UNSENT:
            self.dropped += 1
            return False
        self._unsent.append(message)
        self._more.set()
        return True

    async def run(self) -> None:
        failures = 0
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with asyncio.timeout(HANDSHAKE_S):
                        socket = await connect(
                            session, self.url, self._identity, autoping=False, max_msg_size=1 << 20
                        )
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self._lost(f"{error}" or type(error).__name__)
                else:
                    failures = 0
                    log.info("connected to the autoscaler at %s", self.url)
                    self._problem = ""
                    try:
                        self._lost(await self._serve(socket))
                    except (aiohttp.ClientError, OSError, RuntimeError) as error:  # written to as it broke
                        self._lost(f"{error}" or type(error).__name__)
                    finally:
                        await _close(socket)
                failures += 1
                await asyncio.sleep(pause_s(failures, *BACKOFF_S, random.random()))

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        """Until the connection ends; why it did."""
        self._unsent.clear()
        self.reachable = True
        parts: list[asyncio.Task[str]] = []
        try:
            self._connected()
            parts = [asyncio.create_task(self._write(socket)), asyncio.create_task(self._read(socket))]
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            self.reachable = False
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        ping_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            while self._unsent:
                await socket.send_bytes(self._unsent.popleft())
            now = loop.time()
            if now >= ping_at:
                await socket.ping()
                ping_at = now + PING_S
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ping_at - now):
                    await self._more.wait()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        """The autoscaler sends nothing but pongs, its own pings, and an end."""
        while True:
            try:
                async with asyncio.timeout(PONG_S):
                    message = await socket.receive()
            except TimeoutError:
                return f"no pong within {PONG_S:g} s"
            if message.type == aiohttp.WSMsgType.PING:
                await socket.pong(message.data)
            elif message.type == aiohttp.WSMsgType.CLOSE:
                return f"closed by the autoscaler ({message.data})"
            elif message.type in (
                aiohttp.WSMsgType.CLOSED,
                aiohttp.WSMsgType.CLOSING,
                aiohttp.WSMsgType.ERROR,
            ):
                return "broken"

    def _lost(self, problem: str) -> None:
        self.errors += 1
        if problem != self._problem:
            self._problem = problem
            log.warning("no connection to the autoscaler at %s: %s", self.url, problem)


async def _close(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Without waiting long for the other side's word."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await socket.close()
