"""A data-plane server on loopback with a Dispatch that the test steers, scripted instances, and raw clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, ClassVar

import uvloop

from activator_replacement.http1 import ClientProtocol
from activator_replacement.plane import Limits
from activator_replacement.seam import Dispatch, Exchange, Refusal
from activator_replacement.server import Server
from kserve_ext.core.ids import InstanceID, RevisionKey

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(test: Coroutine[Any, Any, None], timeout_s: float = 150.0) -> None:
    """Runs one test on uvloop; the timeout only ends a hang. An exception in a callback fails the test."""
    raised: list[str] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(repr(context)))
        try:
            await asyncio.wait_for(test, timeout_s)
        finally:
            while Client.opened:
                Client.opened.pop().close()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
    assert not raised, raised


class HoldingDispatch:
    """Sends to `addr` at once, or holds up to `bound` requests while `addr` is "". Checks the order of calls."""

    def __init__(self, addr: str = "", bound: int = 100) -> None:
        self.addr = addr
        self.bound = bound
        self.held: deque[Exchange] = deque()
        self.in_flight: set[Exchange] = set()
        self.calls: list[str] = []
        self.outcomes: list[int] = []
        self.requeue = False
        self.timeout_s: float | None = None
        self.cold = False
        self.continues = False
        self.changed = asyncio.Event()
        self.exchanges: list[Exchange] = []
        self.submitted = self.refused = self.finally_failed = 0

    def resolve(self, host: bytes, namespace: bytes | None, revision: bytes | None) -> RevisionKey | Refusal:
        if host.startswith(b"unknown"):
            return Refusal(404, "no such host")
        return RevisionKey(f"{(namespace or b'default').decode()}/{(revision or host).decode()}")

    def submit(self, exchange: Exchange) -> None:
        self._note("submit")
        self.submitted += 1
        if self.timeout_s is not None:
            exchange.timeout_s = self.timeout_s
        exchange.cold = self.cold
        exchange.continues = self.continues
        if len(self.exchanges) < 1000:
            self.exchanges.append(exchange)
        if self.addr:
            self._go(exchange)
        elif len(self.held) >= self.bound:
            self.refused += 1
            exchange.refuse(429, f"{self.bound} requests are held", 2.0)
        else:
            self.held.append(exchange)

    def _go(self, exchange: Exchange) -> None:
        self.in_flight.add(exchange)
        exchange.go(self.addr, InstanceID("i-1"))

    def release(self, addr: str) -> None:
        self.addr = addr
        while self.held:
            self._go(self.held.popleft())

    def sent(self, exchange: Exchange) -> None:
        assert exchange in self.in_flight
        self._note("sent")

    def first_byte(self, exchange: Exchange) -> None:
        assert exchange in self.in_flight
        self._note("first_byte")

    def finished(self, exchange: Exchange, outcome: int) -> None:
        self.in_flight.remove(exchange)
        self.outcomes.append(outcome)
        self._note("finished")

    def failed(self, exchange: Exchange, reason: str, retriable: bool) -> bool:
        self.in_flight.remove(exchange)
        self._note(f"failed {retriable}")
        if self.requeue and retriable:
            self.held.append(exchange)
            return True
        self.finally_failed += 1
        return False

    def full(self, exchange: Exchange) -> bool:
        self.in_flight.remove(exchange)
        self._note("full")
        self.held.append(exchange)
        return True

    def cancelled(self, exchange: Exchange) -> None:
        self.held.remove(exchange)
        self.outcomes.append(exchange.outcome)
        self._note("cancelled")

    def _note(self, call: str) -> None:
        if len(self.calls) < 1000:
            self.calls.append(call)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


@contextlib.asynccontextmanager
async def dataplane(
    dispatch: Dispatch, *, client_type: type[ClientProtocol] = ClientProtocol, **limits: Any
) -> AsyncIterator[tuple[Server, str, int, tuple[str, int]]]:
    """(server, host, port, admin address)."""
    limits.setdefault("tick_s", 0.02)
    server = Server(dispatch, Limits(**limits), client_type=client_type)
    _, (host, port), admin = await server.start([], ("127.0.0.1", 0), ("127.0.0.1", 0))
    assert admin is not None
    try:
        yield server, host, port, admin
    finally:
        await server.close()


def time_passes(server: Server, dispatch: HoldingDispatch) -> None:
    """Eleven seconds since the one request came, as far as its client's side knows; after one nothing ends."""
    [side] = server.plane.clients
    started = dispatch.exchanges[-1].started
    before = list(dispatch.outcomes)
    side.check(started + 1.0)
    assert dispatch.outcomes == before
    side.check(started + 11.0)


@contextlib.asynccontextmanager
async def instance(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """An instance: `serve` is called with each connection; yields its address.

    That the other side goes while `serve` reads or writes, or that the test ends, is no fault of either.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side went, or the test is over
        except RuntimeError:
            if not writer.is_closing():  # else uvloop's word for a write after the other side went
                raise
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 22, ssl=tls)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(head, body as it was framed)."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"\r\ntransfer-encoding: chunked" in lower:
        return head, await read_chunked(reader)
    if b"\r\ncontent-length:" in lower:
        length = int(lower.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        return head, await reader.readexactly(length)
    return head, b""


async def read_chunked(reader: asyncio.StreamReader) -> bytes:
    """The raw chunks, sizes included."""
    raw = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        raw += line
        size = int(line.partition(b";")[0], 16)
        if size:
            raw += await reader.readexactly(size + 2)
            continue
        while line != b"\r\n":  # trailers
            line = await reader.readuntil(b"\r\n")
            raw += line
        return bytes(raw)


def unchunk(raw: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end].partition(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(raw[end + 2 : end + 2 + size])
        at = end + 4 + size


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its own body, in the request's framing."""
    while True:
        head, body = await read_request(reader)
        if b"transfer-encoding" in head.lower():
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()


class Client:
    """A raw HTTP client on one connection."""

    opened: ClassVar[list[Client]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, host: str, port: int) -> Client:
        client = cls(*await asyncio.open_connection(host, port, limit=1 << 22))
        cls.opened.append(client)
        return client

    def send(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError("closed")
        self.writer.write(data)

    async def response(self) -> tuple[int, bytes, bytes]:
        """(status, head, body with chunks undone)."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        lower = head.lower()
        if status < 200 or status in (204, 304):
            return status, head, b""
        if b"\r\ntransfer-encoding: chunked" in lower:
            return status, head, unchunk(await read_chunked(self.reader))
        if b"\r\ncontent-length:" in lower:
            length = int(lower.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
            return status, head, await self.reader.readexactly(length)
        return status, head, await self.reader.read()

    async def error(self) -> tuple[int, dict[str, Any]]:
        status, _, body = await self.response()
        error = json.loads(body)["error"]
        assert isinstance(error, dict)
        return status, error

    async def closed(self) -> bytes:
        """What still comes until the server closes."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.transport.abort()


def get(path: str = "/", *lines: str, host: str = "tiny") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


def post(body: bytes, *lines: str, host: str = "tiny") -> bytes:
    head = ["POST /v1/completions HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body
