"""Small pages beside the request path, over HTTP/1.1: statistics, metrics, and the wait of a preStop hook."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

HEAD_BYTES = 16_384
#: A connection is kept open for so long without a request.
IDLE_S = 120.0


class Page(NamedTuple):
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


#: Path -> what makes its page.
Pages = Mapping[str, Callable[[], Awaitable[Page]]]


async def listen(host: str, port: int, pages: Pages) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled by the end of the program only; asyncio's own callback takes a cancelled one for an error.
        with contextlib.suppress(
            OSError,
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            asyncio.CancelledError,
        ):
            while await _answer(reader, writer, pages):
                pass
        writer.close()

    return await asyncio.start_server(serve, host, port, limit=HEAD_BYTES)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Pages) -> bool:
    """False: the connection is over."""
    async with asyncio.timeout(IDLE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    words = head.split(" ", 2)
    if len(words) < 3:
        return False  # no request
    lower = head.lower()
    make = pages.get(words[1].partition("?")[0])
    page = await make() if make is not None else Page(b"404 page not found\n", status=404)
    # A body is not read: the connection can't go on behind it.
    over = "\r\nconnection: close" in lower or "\r\ncontent-length:" in lower or "transfer-encoding:" in lower
    over = over or not words[2].startswith("HTTP/1.1")
    lines = [
        f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(page.body)}",
        *(["Connection: close"] if over else []),
        "",
        "",
    ]
    writer.write("\r\n".join(lines).encode() + (b"" if words[0] == "HEAD" else page.body))
    await writer.drain()
    return not over
