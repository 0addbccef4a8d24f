"""What the front asks of servers whose probes go by HTTPS."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from activator_replacement.queue.readiness import Readiness
from kserve_ext.core.queue import probing
from tests.support.certificates import Authority

PROBE = '{"httpGet": {"path": "/ready", "scheme": "%s"}, "periodSeconds": 1, "timeoutSeconds": 60}'


async def ready(context: ssl.SSLContext | None, scheme: str, status: str) -> tuple[bool, list[bytes]]:
    """What one question is answered with a server of that status, and what the server was asked."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.read(65_536)).partition(b"\r\n")[0])
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        readiness = Readiness(probing.asking(PROBE % scheme, server.sockets[0].getsockname()[1]))
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        readiness.ask(answer.set_result)
        return await answer, seen


@pytest.mark.parametrize(("status", "expected"), [("200 OK", True), ("503 No", False)])
def test_a_server_with_a_certificate_that_nobody_knows_is_asked_over_tls(
    status: str, expected: bool, tmp_path: Path
) -> None:
    """As pods have them: for another name, of an authority of their own."""
    context = Authority().server(tmp_path, "another.example")
    assert asyncio.run(ready(context, "HTTPS", status)) == (expected, [b"GET /ready HTTP/1.1"])


@pytest.mark.parametrize("scheme", ["HTTP", "HTTPS"])
def test_who_speaks_otherwise_than_the_probe_says_is_not_ready(scheme: str, tmp_path: Path) -> None:
    context = Authority().server(tmp_path, "another.example") if scheme == "HTTP" else None
    found, _ = asyncio.run(ready(context, scheme, "200 OK"))
    assert not found
