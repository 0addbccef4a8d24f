"""The websocket to the autoscaler: what it does when the other side is silent, asks, or goes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import WSMsgType, web

from activator_replacement.knative.reports import stat_sink
from activator_replacement.knative.reports.stat_sink import StatSink
from tests.support.dataplane import instance, run
from tests.support.dispatch_cluster import until


class Server:
    """A stat server that notes what comes, and pongs only if it is told to."""

    def __init__(self, *, pongs: bool) -> None:
        self.pongs = pongs
        self.got: list[tuple[WSMsgType, bytes]] = []
        self.sockets: list[web.WebSocketResponse] = []

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=False, timeout=0.2)
        await socket.prepare(request)
        self.sockets.append(socket)
        async for message in socket:
            self.got.append((message.type, bytes(message.data)))
            if message.type is WSMsgType.PING and self.pongs:
                await socket.pong(message.data)
        return socket

    def types(self) -> set[WSMsgType]:
        return {kind for kind, _ in self.got}


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[StatSink]:
    app = web.Application()
    app.router.add_get("/", server.accept)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sink = StatSink(f"ws://127.0.0.1:{runner.addresses[0][1]}")
    task = asyncio.create_task(sink.run())
    try:
        await until(lambda: sink.reachable, "it is connected")
        yield sink
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()


def test_messages_and_pings() -> None:
    async def test() -> None:
        server = Server(pongs=True)
        async with connected(server) as sink:
            assert sink.send(b"one")
            assert sink.send(b"two")
            await until(lambda: len(server.got) >= 3, "both and a ping have come")
            assert [data for kind, data in server.got if kind is WSMsgType.BINARY] == [b"one", b"two"]
            assert WSMsgType.PING in server.types()
            await server.sockets[0].ping(b"and you?")
            await until(lambda: (WSMsgType.PONG, b"and you?") in server.got, "it answers pings")

    run(test())


def test_a_silent_server_is_left_and_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stat_sink, "PONG_S", 0.1)

    async def test() -> None:
        server = Server(pongs=False)
        async with connected(server) as sink:
            await until(lambda: len(server.sockets) > 1, "there is another connection")
            assert sink.errors >= 1

    run(test())


@pytest.mark.parametrize("abort", [False, True])
def test_a_connection_that_ends_while_its_pings_are_answered_is_made_again(abort: bool) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split()[1] for line in head.splitlines() if line.startswith("Sec-WebSocket-Key"))
        digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        await reader.readexactly(1)  # it is up
        writer.write(b"\x89\x01x" * 3)
        writer.close()
        if abort:
            writer.transport.abort()

    async def test() -> None:
        async with instance(serve) as addr:
            task = asyncio.create_task(StatSink(f"ws://{addr}").run())
            try:
                await until(lambda: connections > 1 or task.done(), "it is made again")
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    run(test())


def test_nothing_waits_for_a_server_that_is_away() -> None:
    async def test() -> None:
        sink = StatSink("ws://127.0.0.1:1")
        assert not sink.send(b"lost")
        assert sink.dropped == 1
        task = asyncio.create_task(sink.run())
        await until(lambda: sink.errors >= 2, "it tries again")
        assert not sink.reachable
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(test())
