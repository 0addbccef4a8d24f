"""Collectors of OpenTelemetry on loopback, one for each way to send: they keep what they are sent."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import cast

import h2.config
import h2.connection
import h2.events
from aiohttp import web


class Sent:
    """What came, by path."""

    def __init__(self) -> None:
        self.url = ""
        self.status = "0"
        self.authority = ""  # of the last call over gRPC
        self._came: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def next(self) -> tuple[str, bytes]:
        return await self._came.get()

    def keep(self, path: str, body: bytes) -> None:
        self._came.put_nowait((path, body))


@contextlib.asynccontextmanager
async def over_http() -> AsyncIterator[Sent]:
    sent = Sent()

    async def take(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        sent.keep(request.path, await request.read())
        return web.Response(status=200 if sent.status == "0" else 503)

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sent.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield sent
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def over_grpc(tls: ssl.SSLContext | None = None) -> AsyncIterator[Sent]:
    sent = Sent()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _GrpcServer(sent), "127.0.0.1", 0, ssl=tls)
    sent.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield sent
    finally:
        server.close()
        await server.wait_closed()


class _GrpcServer(asyncio.Protocol):
    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self._transport: asyncio.Transport | None = None
        self._http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._paths: dict[int, str] = {}
        self._bodies: dict[int, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._http2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self._http2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = dict(event.headers)
                assert headers[b"content-type"] == b"application/grpc"
                assert headers[b"te"] == b"trailers"
                self._sent.authority = headers[b":authority"].decode()
                self._paths[event.stream_id] = headers[b":path"].decode()
                self._bodies[event.stream_id] = b""
            elif isinstance(event, h2.events.DataReceived):
                self._bodies[event.stream_id] += event.data
                self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self._answer(event.stream_id)
        self._flush()

    def _answer(self, stream: int) -> None:
        body = self._bodies.pop(stream)
        assert body[0] == 0
        assert int.from_bytes(body[1:5], "big") == len(body) - 5
        self._sent.keep(self._paths.pop(stream), body[5:])
        status = [("grpc-status", self._sent.status), ("grpc-message", "not%20now")]
        head = [(":status", "200"), ("content-type", "application/grpc")]
        if self._sent.status == "0":
            self._http2.send_headers(stream, head)
            self._http2.send_data(stream, bytes(5))
            self._http2.send_headers(stream, status[:1], end_stream=True)
        else:
            self._http2.send_headers(stream, [*head, *status], end_stream=True)

    def _flush(self) -> None:
        assert self._transport is not None
        self._transport.write(self._http2.data_to_send())
