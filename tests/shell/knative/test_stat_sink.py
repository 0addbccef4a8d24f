"""The websocket to the autoscaler: what it does when the other side is silent, asks, or goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import WSMsgType, web

from activator_replacement.knative.reports import stat_sink
from activator_replacement.knative.reports.stat_sink import StatSink
from tests.support.dataplane import run
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
