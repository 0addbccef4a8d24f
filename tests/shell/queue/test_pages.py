"""The end of a program whose pages somebody has a connection to."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from activator_replacement.queue import pages
from activator_replacement.queue.pages import Page


def test_a_connection_that_is_open_at_the_end_is_no_error() -> None:
    complaints: list[dict[str, Any]] = []

    async def page() -> Page:
        return Page(b"here")

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        server = await pages.listen("127.0.0.1", 0, {"/": page})
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, server.sockets[0].getsockname())
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"here"):
            answer += await loop.sock_recv(client, 4096)
        server.close()  # which ends no connection

    with socket.socket() as client:
        client.setblocking(False)
        asyncio.run(run())
    assert complaints == []
