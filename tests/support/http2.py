"""Clients and instances that speak HTTP/2 through the h2 library, each frame steered by the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from activator_replacement.http2.client import Http2Client
from activator_replacement.plane import Plane
from kserve_ext.wire.http2 import frames
from kserve_ext.wire.http2.hpack import literal
from tests.support.dataplane import Client

Pairs = list[tuple[str, str]]

_HEADS = (
    h2.events.RequestReceived,
    h2.events.ResponseReceived,
    h2.events.InformationalResponseReceived,
)

REQUEST: Pairs = [(":method", "POST"), (":scheme", "http"), (":path", "/v1/x"), (":authority", "tiny")]
REQUEST_BLOCK = b"".join(literal(name.encode(), value.encode()) for name, value in REQUEST)


class Seen:
    """What came on one stream."""

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []  # of a response also the informational ones
        self.body = bytearray()
        self.trailers: dict[str, str] | None = None
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.heads[-1][":status"])

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    def error(self) -> dict[str, Any]:
        error = json.loads(self.body)["error"]
        assert isinstance(error, dict)
        return error


class Peer(asyncio.Protocol):
    """One side of a connection. `windows`: opens them for what it reads."""

    def __init__(self, *, client: bool, windows: bool = True, settings: dict[int, int] | None = None) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=client,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.windows = windows
        self.settings = settings or {}
        self.streams: dict[int, Seen] = {}
        self.changed = asyncio.Event()
        self.closed = False
        self.goaway: tuple[int, int] | None = None  # last stream, code
        self.raw = bytearray()
        self._rest = b""
        self._preface = 0 if client else 24
        self.on_event: Callable[[Any], None] = lambda event: None
        self.transport: asyncio.WriteTransport = cast("asyncio.WriteTransport", None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)
        if self.settings:
            self.h2.local_settings = h2.settings.Settings(
                client=self.h2.config.client_side,
                initial_values={
                    h2.settings.SettingCodes(name): value for name, value in self.settings.items()
                },
            )
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.raw += data[: 4096 - len(self.raw)] if len(self.raw) < 4096 else b""
        for event in self.h2.receive_data(self._without_goaway(data)):
            self._seen(event)
            self.on_event(event)
        self.flush()
        self.changed.set()

    def _without_goaway(self, data: bytes) -> bytes:
        """h2 takes nothing any more after a GOAWAY; streams under way go on all the same."""
        data = self._rest + data
        at = self._preface
        if len(data) < at:
            self._rest = data
            return b""
        kept = [data[:at]]
        self._preface = 0
        while len(data) >= at + 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            if data[at + 3] == 7:
                self.goaway = (
                    int.from_bytes(data[at + 9 : at + 13], "big"),
                    int.from_bytes(data[at + 13 : at + 17], "big"),
                )
            else:
                kept.append(data[at:end])
            at = end
        self._rest = data[at:]
        return b"".join(kept)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.changed.set()

    def _seen(self, event: Any) -> None:
        number = getattr(event, "stream_id", None)
        if not number:
            return
        seen = self.streams.setdefault(number, Seen())
        if isinstance(event, _HEADS):
            seen.heads.append(dict(event.headers))  # type: ignore[arg-type]
        elif isinstance(event, h2.events.DataReceived):
            seen.body += event.data
            if self.windows and event.flow_controlled_length:
                self.h2.increment_flow_control_window(event.flow_controlled_length)
                if not event.stream_ended:
                    with contextlib.suppress(h2.exceptions.StreamClosedError, KeyError):
                        self.h2.increment_flow_control_window(event.flow_controlled_length, number)
        elif isinstance(event, h2.events.TrailersReceived):
            seen.trailers = dict(event.headers)  # type: ignore[arg-type]
        elif isinstance(event, h2.events.StreamEnded):
            seen.ended = True
        elif isinstance(event, h2.events.StreamReset):
            seen.reset = int(event.error_code)

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            assert not (self.closed and not condition()), "the connection was closed"
            self.changed.clear()
            await self.changed.wait()

    def heads(self, number: int) -> int:
        return len(self.streams[number].heads) if number in self.streams else 0

    async def over(self, number: int) -> Seen:
        await self.until(lambda: number in self.streams and self.streams[number].over)
        return self.streams[number]

    async def settled(self) -> None:
        """Our settings are known to the other side: nothing more is sent by itself."""
        await self.until(lambda: b"\x00\x00\x00\x04\x01\x00\x00\x00\x00" in self.raw)

    async def head(self, number: int) -> Seen:
        await self.until(lambda: number in self.streams and self.streams[number].heads)
        return self.streams[number]

    async def end(self) -> None:
        while not self.closed:
            self.changed.clear()
            await self.changed.wait()

    def begin(self, *more: tuple[str, str], end: bool = False, pairs: Pairs = REQUEST) -> int:
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, [*pairs, *more], end_stream=end)
        self.flush()
        return number

    def send_block(self, block: bytes, number: int = 0, *, end: bool = True) -> int:
        """A header block that h2 would not send, or only slowly: a request's, or trailers."""
        pairs = [("x-sum", "0")] if number else REQUEST
        number = number or self.h2.get_next_available_stream_id()
        self.flush()
        self.h2.send_headers(number, pairs, end_stream=end)
        self.h2.data_to_send()
        self.transport.write(frames.headers_frames(number, block, end, frames.FRAME_BYTES))
        return number

    async def send(self, number: int, data: bytes, end: bool = False) -> None:
        """All of it, as the windows open."""
        view = memoryview(data)
        while len(view):
            size = min(len(view), self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            if size:
                self.h2.send_data(number, bytes(view[:size]), end_stream=end and size == len(view))
                view = view[size:]
                self.flush()
            else:
                self.changed.clear()
                await self.changed.wait()
        if not data:
            self.h2.send_data(number, b"", end_stream=end)
            self.flush()

    async def request(self, body: bytes = b"", *more: tuple[str, str], pairs: Pairs = REQUEST) -> Seen:
        number = self.begin(*more, end=not body, pairs=pairs)
        if body:
            await self.send(number, body, True)
        return await self.over(number)

    def reset(self, number: int, code: int = 8) -> None:
        self.h2.reset_stream(number, code)
        self.flush()

    def respond(self, number: int, *more: tuple[str, str], status: int = 200, end: bool = False) -> None:
        self.h2.send_headers(number, [(":status", str(status)), *more], end_stream=end)
        self.flush()

    def trailers(self, number: int, *pairs: tuple[str, str]) -> None:
        self.h2.send_headers(number, list(pairs), end_stream=True)
        self.flush()

    def close(self) -> None:
        self.transport.abort()


async def connect(host: str, port: int, **arguments: Any) -> Peer:
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_connection(lambda: Peer(client=True, **arguments), host, port)
    Client.opened.append(cast("Client", peer))  # closed when the test ends
    return peer


class Instance:
    """Takes connections; `serve` is called with a peer and each of its events."""

    def __init__(
        self, serve: Callable[[Peer, Any], None] = lambda peer, event: None, **arguments: Any
    ) -> None:
        self.serve = serve
        self.arguments = arguments
        self.peers: list[Peer] = []
        self.changed = asyncio.Event()
        self.addr = ""
        self.server: asyncio.Server

    def _accept(self) -> Peer:
        peer = Peer(client=False, **self.arguments)

        def event(event: Any) -> None:
            self.serve(peer, event)
            self.changed.set()

        peer.on_event = event
        self.peers.append(peer)
        return peer

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def requests(self, count: int) -> list[tuple[Peer, int]]:
        """As soon as so many streams have begun, in all."""
        await self.until(lambda: sum(len(peer.streams) for peer in self.peers) >= count)
        return [(peer, number) for peer in self.peers for number in peer.streams]


@contextlib.asynccontextmanager
async def instance2(
    serve: Callable[[Peer, Any], None] = lambda peer, event: None, **arguments: Any
) -> AsyncIterator[Instance]:
    made = Instance(serve, **arguments)
    loop = asyncio.get_running_loop()
    made.server = await loop.create_server(made._accept, "127.0.0.1", 0)
    host, port = made.server.sockets[0].getsockname()[:2]
    made.addr = f"{host}:{port}"
    try:
        yield made
    finally:
        made.server.close()
        for peer in made.peers:
            peer.close()


def echo2(peer: Peer, event: Any) -> None:
    """Answers when the request has ended, with its body and a trailer."""
    if isinstance(event, h2.events.StreamEnded):
        seen = peer.streams[event.stream_id]
        peer.h2.send_headers(event.stream_id, [(":status", "200"), ("x-path", seen.heads[0][":path"])])
        task = asyncio.ensure_future(_finish(peer, event.stream_id, bytes(seen.body)))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Future[None]] = set()


async def _finish(peer: Peer, number: int, body: bytes) -> None:
    try:
        await peer.send(number, body)
        peer.trailers(number, ("x-sum", str(len(body))))
    except h2.exceptions.ProtocolError:
        pass  # its stream was reset meanwhile


async def turn_until(condition: Callable[[], Any]) -> None:
    """For what no event tells."""
    loop = asyncio.get_running_loop()
    while not condition():
        turned = loop.create_future()
        loop.call_soon(turned.set_result, None)
        await turned


def at_rest(plane: Plane) -> None:
    """Nothing is kept of exchanges that are over."""
    for client in plane.clients:
        assert isinstance(client, Http2Client)
        assert not client.exchanges
        assert not client.connection.streams
        assert client.connection.buffered == 0
    for kept in plane.http2_cache._open.values():
        for upstream in kept:
            assert not upstream.connection.streams
