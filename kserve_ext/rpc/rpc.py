"""Rpc: one per process. Listens, keeps one connection per peer address, routes requests to handlers.

A handler takes (message, caller) and returns the reply, or something awaitable that gives it. Calls to the
process's own address skip the encoding, but still answer later, never within the call. Deadlines travel with the
call: a request whose time is up when it would be handled is not run, and a late answer is not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

from kserve_ext.rpc.connection import Connection, Done
from kserve_ext.rpc.errors import RpcError
from kserve_ext.wire.frames import NO_SPAN, NO_TRACE, ErrorCode, Frame
from kserve_ext.wire.messages import METHODS, Message

log = logging.getLogger(__name__)

DIAL_TIMEOUT_S = 2.0

M = TypeVar("M", bound=Message)
Handler = Callable[[Any, "Caller"], Any]

_numbers = {request: number for number, (request, _) in METHODS.items()}
_request_decoders = {m: msgspec.msgpack.Decoder(request).decode for m, (request, _) in METHODS.items()}


class Trace(NamedTuple):
    """W3C trace context of a call."""

    trace_id: bytes = NO_TRACE
    span_id: bytes = NO_SPAN

    @staticmethod
    def new() -> Trace:
        return Trace(os.urandom(16), os.urandom(8))


class Caller(NamedTuple):
    """Who calls, under which epoch, and until when (loop time)."""

    name: str
    epoch: int
    trace: Trace
    expires: float
    connection: object = None

    def deadline_left_s(self, now: float) -> float:
        return max(0.0, self.expires - now)


class Rpc:
    """The process's endpoint: `handle`, `listen`, `call`, `call_soon`."""

    def __init__(self, name: str, key: bytes, *, epoch: Callable[[], int] = lambda: 0) -> None:
        if len(key) < 16:
            raise ValueError("cluster key: needs at least 16 bytes; make one with `galaxy up`")
        self.name = name
        self.key = key
        self.epoch = epoch
        self.calls = self.errors = 0
        self._handlers: dict[int, Handler] = {}
        self._servers: list[asyncio.AbstractServer] = []
        self._own: set[str] = set()
        self._out: dict[str, Connection] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._queued: dict[str, list[tuple[int, Message, Done, float, Trace]]] = {}
        self._accepted: set[Connection] = set()
        self._lost: list[Callable[[Caller], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- serving

    def handle(self, request: type[M], handler: Callable[[M, Caller], Any]) -> None:
        self._handlers[_numbers[request]] = handler

    async def listen(self, host: str, port: int = 0) -> str:
        """Listens on host:port (0 = any free one); the address that others may call."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: self._accept(loop), host, port)
        self._servers.append(server)
        addr = f"{host}:{server.sockets[0].getsockname()[1]}"
        self._own.add(addr)
        return addr

    async def listen_unix(self, path: str) -> str:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by a process that died
        self._servers.append(await loop.create_unix_server(lambda: self._accept(loop), path))
        self._own.add(f"unix:{path}")
        return f"unix:{path}"

    def on_lost(self, callback: Callable[[Caller], None]) -> None:
        """Called when an accepted, authenticated connection has ended."""
        self._lost.append(callback)

    # --- calling

    def call_soon(
        self, addr: str, message: Message, done: Done, timeout_s: float = 5.0, trace: Trace | None = None
    ) -> None:
        """Calls `done` with the reply or an RpcError, later; dials when there is no connection yet."""
        method = _numbers[type(message)]
        self.calls += 1
        trace = trace or Trace()
        connection = self._out.get(addr)
        if connection is not None:
            connection.call(method, message, done, timeout_s, self.epoch(), trace.trace_id, trace.span_id)
        elif addr in self._own:
            self._call_own(method, message, done, timeout_s, trace)
        else:
            loop = asyncio.get_running_loop()
            if self._closing or not addr:
                why = "this process is closing" if self._closing else "the address of the peer is not known"
                loop.call_soon(done, RpcError(ErrorCode.UNAVAILABLE, why, addr, sent=False))
                return
            self._queued.setdefault(addr, []).append((method, message, done, loop.time() + timeout_s, trace))
            if addr not in self._dialling:
                self._dialling[addr] = loop.create_task(self._dial(addr, loop))

    async def call(
        self, addr: str, message: Message, timeout_s: float = 5.0, trace: Trace | None = None
    ) -> Any:
        """The reply (its type is METHODS' for the message). Raises RpcError."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def done(reply: Message | RpcError) -> None:
            if future.done():
                return
            if isinstance(reply, RpcError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.call_soon(addr, message, done, timeout_s, trace)
        return await future

    async def close(self) -> None:
        self._closing = True
        for server in self._servers:
            server.close()
        gone = RpcError(ErrorCode.UNAVAILABLE, "this process is closing", sent=True)
        for connection in [*self._out.values(), *self._accepted]:
            connection._flush()
            connection.drop(gone)
        for task in [*self._dialling.values(), *self._tasks]:
            task.cancel()
        await asyncio.sleep(0)  # lets transports close

    # --- for Connection

    def requested(self, connection: Connection, f: Frame) -> None:
        """A request has arrived on an authenticated connection."""
        connection.peer_epoch = f[4]
        handler = self._handlers.get(f[1])
        if handler is None:
            known = METHODS.get(f[1])
            what = known[0].__name__ if known else f"method {f[1]}"
            connection.reply_error(
                f, ErrorCode.UNKNOWN_METHOD, f"{self.name} does not answer {what}", self.epoch()
            )
            return
        expires = connection.loop.time() + f[3] / 1000
        caller = Caller(connection.peer, f[4], Trace(f[5], f[6]), expires, connection)
        try:
            result = handler(_request_decoders[f[1]](f[7]), caller)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            connection.reply_error(f, ErrorCode.MALFORMED, str(error), self.epoch())
            return
        except Exception as error:
            self._internal(connection, f, error)
            return
        if isinstance(result, Message):
            connection.reply(f, result, self.epoch())
        else:
            self._later(connection, f, result, expires)

    def closed(self, connection: Connection, was_open: bool) -> None:
        if connection.caller:
            if self._out.get(connection.addr) is connection:
                del self._out[connection.addr]
            return
        self._accepted.discard(connection)
        if was_open:
            caller = Caller(connection.peer, connection.peer_epoch, Trace(), 0.0, connection)
            for callback in self._lost:
                callback(caller)

    # --- inside

    def _accept(self, loop: asyncio.AbstractEventLoop) -> Connection:
        connection = Connection(self, loop)
        self._accepted.add(connection)
        return connection

    async def _dial(self, addr: str, loop: asyncio.AbstractEventLoop) -> None:
        connection = Connection(self, loop, addr)
        failure: RpcError | None = None
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                if addr.startswith("unix:"):
                    await loop.create_unix_connection(lambda: connection, addr[5:])
                else:
                    host, _, port = addr.rpartition(":")
                    await loop.create_connection(lambda: connection, host, int(port))
                await connection.opened
            self._out[addr] = connection
        except RpcError as error:
            failure = error
        except TimeoutError:
            failure = RpcError(
                ErrorCode.UNAVAILABLE, f"no connection in {DIAL_TIMEOUT_S} s", addr, sent=False
            )
        except (OSError, ValueError) as error:
            failure = RpcError(ErrorCode.UNAVAILABLE, str(error), addr, sent=False)
        finally:
            del self._dialling[addr]
            queued = self._queued.pop(addr, [])
            if failure is not None:
                self.errors += 1
                connection.drop(failure)
        now = loop.time()
        for method, message, done, due, trace in queued:
            if failure is not None:
                done(failure)
            elif due <= now:
                done(RpcError(ErrorCode.DEADLINE, "no connection in time", addr, sent=False))
            else:
                epoch = self.epoch()
                connection.call(method, message, done, due - now, epoch, trace.trace_id, trace.span_id)

    def _call_own(self, method: int, message: Message, done: Done, timeout_s: float, trace: Trace) -> None:
        loop = asyncio.get_running_loop()
        caller = Caller(self.name, self.epoch(), trace, loop.time() + timeout_s)

        def failed(code: ErrorCode, detail: str) -> None:
            done(RpcError(code, detail, self.name))

        def run() -> None:
            handler = self._handlers.get(method)
            if handler is None:
                failed(ErrorCode.UNKNOWN_METHOD, f"{self.name} does not answer {type(message).__name__}")
                return
            try:
                result = handler(message, caller)
            except Exception as error:
                log.exception("%s of %s failed in this process", type(message).__name__, self.name)
                failed(ErrorCode.INTERNAL, repr(error))
                return
            if isinstance(result, Message):
                done(result)
            else:
                self._track(loop.create_task(self._await_own(result, timeout_s, done, message)))

        loop.call_soon(run)

    async def _await_own(
        self, result: Awaitable[Message], timeout_s: float, done: Done, message: Message
    ) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                reply = await result
        except TimeoutError:
            done(RpcError(ErrorCode.DEADLINE, "no answer in time", self.name))
        except Exception as error:
            log.exception("%s of %s failed in this process", type(message).__name__, self.name)
            done(RpcError(ErrorCode.INTERNAL, repr(error), self.name))
        else:
            done(reply)

    def _later(self, connection: Connection, f: Frame, result: Awaitable[Message], expires: float) -> None:
        if isinstance(result, asyncio.Future):

            def answered(future: asyncio.Future[Message]) -> None:
                if future.cancelled() or connection.loop.time() > expires:
                    return
                error = future.exception()
                if error is not None:
                    self._internal(connection, f, error)
                else:
                    connection.reply(f, future.result(), self.epoch())

            result.add_done_callback(answered)
            return
        self._track(connection.loop.create_task(self._await(connection, f, result, expires)))

    async def _await(
        self, connection: Connection, f: Frame, result: Awaitable[Message], expires: float
    ) -> None:
        try:
            async with asyncio.timeout_at(expires):
                connection.reply(f, await result, self.epoch())
        except TimeoutError:
            return  # the caller has given up by itself
        except Exception as error:
            self._internal(connection, f, error)

    def _internal(self, connection: Connection, f: Frame, error: BaseException) -> None:
        self.errors += 1
        what = METHODS[f[1]][0].__name__
        log.error("%s from %s failed here", what, connection.peer, exc_info=error)
        connection.reply_error(
            f, ErrorCode.INTERNAL, f"{self.name}: {what}: {error!r} (see its log)", self.epoch()
        )

    def _track(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
