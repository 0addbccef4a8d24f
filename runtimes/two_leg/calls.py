"""One HTTP/1.1 exchange with an engine, on a connection of its own: to end the connection is to cancel the work.

Plain callbacks around llhttp; a body is read as it comes, and not faster than it is taken. An engine's keep-alive
would save a tenth of a millisecond and make a closed connection ambiguous: was the request begun? Never tries
again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

Header = tuple[bytes, bytes]

CONNECT_S: Final = 5.0
_MOST_UNREAD: Final = 256 << 10


class NotReached(Exception):
    """The engine never had the request."""


class Lost(Exception):
    """The engine had it, and has ended the connection."""


class Address(NamedTuple):
    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """http://host:port, https://host, or host:port. Raises ValueError, with what is wrong."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the URL of an engine; write http://HOST:PORT")
        if parts.path.rstrip("/") or parts.query:
            raise ValueError(f"{url!r}: only http://HOST:PORT, the path is the client's")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls)

    @property
    def text(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Call(asyncio.Protocol):
    """`begin`, then `head`, then `body` until it ends; `cancel` at any time."""

    def __init__(self) -> None:
        self.sent = False
        self.status = 0
        self.headers: list[Header] = []
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._has_head = False
        self._only_head = False  # is wanted
        self._whole = False
        self._ended: Exception | None = None
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._paused = False
        self._news = asyncio.Event()

    async def begin(
        self, to: Address, method: bytes, path: bytes, headers: Sequence[Header], body: bytes
    ) -> None:
        """Raises NotReached."""
        loop = asyncio.get_running_loop()
        context = ssl.create_default_context() if to.tls else None
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: self, to.host, to.port, ssl=context)
        except (OSError, TimeoutError) as error:
            why = str(error) or f"no connection within {CONNECT_S:g} s"
            raise NotReached(f"{to.text}: {why}") from error
        assert self._transport is not None
        lines = [b"%b %b HTTP/1.1" % (method, path), b"host: " + to.text.encode(), b"connection: close"]
        lines += [b"%b: %b" % header for header in headers]
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        self._only_head = method == b"HEAD"
        self._transport.write(b"\r\n".join(lines) + body)
        self.sent = True

    async def head(self) -> int:
        """The status. Raises Lost."""
        while not self._has_head:
            await self._more()
        return self.status

    async def body(self) -> AsyncIterator[bytes]:
        """In pieces. Raises Lost where it is cut off."""
        while True:
            while self._unread:
                piece = self._unread.popleft()
                self._unread_bytes -= len(piece)
                yield piece
            if self._whole:
                return
            if self._paused and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
            await self._more()

    async def all(self) -> bytes:
        return b"".join([piece async for piece in self.body()])

    def cancel(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        if self._ended is not None:
            raise self._ended
        self._news.clear()
        await self._news.wait()

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"answered what is not HTTP: {error}")
            self.cancel()
        self._news.set()
        if self._unread_bytes > _MOST_UNREAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self._has_head and not error and not self._framed():
            self._whole = True  # its body ends with the connection
        self._end(f"ended the connection ({error})" if error else "ended the connection")

    def _framed(self) -> bool:
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def _end(self, why: str) -> None:
        if self._ended is None:
            self._ended = Lost(why)
        self._news.set()

    # --- llhttp

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers = []
            return
        self._has_head = True
        if self._only_head:
            self.on_message_complete()

    def on_body(self, piece: bytes) -> None:
        self._unread.append(piece)
        self._unread_bytes += len(piece)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._whole = True
            self._ended = Lost("the answer is over")


async def reachable(to: Address) -> bool:
    """Whether anybody still listens there."""
    try:
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection(to.host, to.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
