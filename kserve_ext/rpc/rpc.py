"""Rpc: one per process. Listens, calls on kept connections (outgoing.py), routes requests to handlers.

A handler takes (message, caller) and returns the reply, an Answer, or something awaitable that gives it. Calls to the
process's own address skip the encoding, but still answer later, never within the call. Deadlines travel with the
call: a request whose time is up when it would be handled is not run, and a late answer is not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Any, TypeVar

import msgspec

from kserve_ext.core.connection_cache import BOUND
from kserve_ext.rpc.answer import Answer
from kserve_ext.rpc.caller import UNTRACED, Caller, Trace
from kserve_ext.rpc.connection import BYE, Connection
from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.history import History
from kserve_ext.rpc.listener import Listener, serve
from kserve_ext.rpc.mutual_tls import Identity
from kserve_ext.rpc.outgoing import PING, Outgoing
from kserve_ext.rpc.pending import Done
from kserve_ext.wire.frames import NO_SPAN, NO_TRACE, REQUEST, ErrorCode, Frame
from kserve_ext.wire.messages import METHODS, UNREADABLE, Ack, Message

log = logging.getLogger(__name__)

CLOSE_GRACE_S = 0.2

M = TypeVar("M", bound=Message)
Handler = Callable[[Any, Caller], Any]

_numbers = {request: number for number, (request, _) in METHODS.items()}
_request_decoders = {m: msgspec.msgpack.Decoder(request).decode for m, (request, _) in METHODS.items()}


class Rpc:
    """The process's endpoint: `handle`, `listen`, `call`, `call_soon`."""

    def __init__(
        self,
        name: str,
        key: bytes,
        *,
        epoch: Callable[[], int] = lambda: 0,
        identity: Identity | None = None,
        connections: int = BOUND,
    ) -> None:
        """`identity`: for mutual TLS beneath the hello, but for addresses of this machine (unix:).

        `connections`: kept to others at most, besides those in use.
        """
        if len(key) < 16:
            raise ValueError("cluster key: needs at least 16 bytes; make one with `galaxy up`")
        self.name = name
        self.key = key
        self.history = History(name)
        self.epoch = epoch
        self._identity = identity
        self.calls = self.errors = 0
        #: connections to those that we call
        self.outgoing = Outgoing(self, identity, connections)
        self._own_calls = 0
        self._handlers: dict[int, Handler] = {}
        self._servers: list[asyncio.AbstractServer | Listener] = []
        self._own: set[str] = set()
        self._accepted: set[Connection] = set()
        #: to be flushed when everybody in this loop iteration has said what they have to say
        self._unflushed: list[Connection] = []
        self._lost: list[Callable[[Caller], None]] = []
        self._peer_lost: list[Callable[[str], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- serving

    def handle(self, request: type[M], handler: Callable[[M, Caller], Any]) -> None:
        self._handlers[_numbers[request]] = handler

    async def listen(self, host: str, port: int = 0) -> str:
        """Listens on host:port (0 = any free one); the address that others may call."""
        loop = asyncio.get_running_loop()
        if self._identity is not None:
            listener = Listener(lambda: self._accept(loop), self._identity)
            port = listener.start(host, port)[1]
            self._servers.append(listener)
        else:
            server, port = await serve(loop, lambda: self._accept(loop), host, port)
            self._servers.append(server)
        addr = f"{host}:{port}"
        self._own.add(addr)
        return addr

    async def listen_unix(self, path: str) -> str:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by a process that died
        self._servers.append(await loop.create_unix_server(lambda: self._accept(loop), path))
        self._own.add(f"unix:{path}")
        return f"unix:{path}"

    def on_lost(self, callback: Callable[[Caller], None]) -> Callable[[], None]:
        """Called when an accepted, authenticated connection has ended. Returns what ends that."""
        self._lost.append(callback)
        return lambda: self._lost.remove(callback)

    def on_peer_lost(self, callback: Callable[[str], None]) -> None:
        """Called with the address when a connection that we dialled has ended."""
        self._peer_lost.append(callback)

    # --- calling

    def call_soon(
        self, addr: str, message: Message, done: Done, timeout_s: float = 5.0, trace: Trace = UNTRACED
    ) -> None:
        """Calls `done` with the reply or an RpcError, later; dials when there is no connection yet."""
        method = _numbers[type(message)]
        self.calls += 1
        connection = self.outgoing.get(addr)
        if connection is None:
            if addr in self._own:
                self._own_calls += 1
                self._call_own(method, message, done, timeout_s, trace)
                return
            loop = asyncio.get_running_loop()
            if self._closing or not addr:
                why = "this process is closing" if self._closing else "the address of the peer is not known"
                loop.call_soon(done, RpcError(ErrorCode.UNAVAILABLE, why, addr, sent=False))
                return
            connection = self.outgoing.missed(addr, loop)
        connection.call(method, message, done, timeout_s, self.epoch(), trace[0], trace[1])

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

        self.call_soon(addr, message, done, timeout_s, trace or UNTRACED)
        return await future

    def warm(self, addrs: Iterable[str]) -> None:
        """Connects ahead to those that will be called: a few at a time, and in this process's own order.

        Nobody hears when one can't be reached.
        """
        self.outgoing.warm(set(addrs) - self._own)

    def connections(self) -> dict[str, int]:
        """Of the connection cache, for people and metrics: how many there are, and what has become of calls."""
        return {"accepted": len(self._accepted), **self.outgoing.counts(self.calls - self._own_calls)}

    async def close(self) -> None:
        """Ends listening, gives handlers under way a moment to answer, then ends every connection."""
        self._closing = True
        for server in self._servers:
            server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_GRACE_S)
        self.outgoing.close()
        gone = RpcError(ErrorCode.UNAVAILABLE, "this process is closing", sent=True)
        for connection in [*self.outgoing.connections(), *self._accepted]:
            connection.flush()
            connection.drop(gone)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self.outgoing.dials, return_exceptions=True)
        await asyncio.sleep(0)  # lets transports close

    # --- for Connection

    def requested(self, connection: Connection, f: Frame, arrived: float) -> None:
        """A request has arrived on an authenticated connection."""
        _, method, _, deadline_ms, epoch, trace_id, span_id, body = f
        handler = self._handlers.get(method)
        if f[0] != REQUEST or handler is None:
            self._unknown(connection, f)
            return
        expires = arrived + deadline_ms * 0.001
        if expires < monotonic():
            return  # the caller has given up while others of this batch ran
        connection.peer_epoch = epoch
        try:
            message = _request_decoders[method](body)
        except UNREADABLE as error:
            connection.reply_error(f, ErrorCode.MALFORMED, str(error), self.epoch())
            return
        try:
            result = handler(message, Caller(connection.peer, epoch, trace_id, span_id, expires, connection))
            if isinstance(result, Message):
                connection.reply(f, result, self.epoch())
            elif isinstance(result, Answer):
                result.then(lambda reply: self._answered(connection, f, reply, expires))
            else:
                self._later(connection, f, result, expires)
        except Exception as error:
            self._internal(connection, f, error)

    def flush_soon(self, connection: Connection) -> None:
        """At the end of this loop iteration: one callback for all connections."""
        unflushed = self._unflushed
        unflushed.append(connection)
        if len(unflushed) == 1:
            connection.loop.call_soon(self._flush)

    def closed(self, connection: Connection, was_open: bool) -> None:
        if connection.caller:
            self.outgoing.closed(connection)
            if was_open and not self._closing:
                for peer_lost in self._peer_lost:
                    peer_lost(connection.addr)
            return
        self._accepted.discard(connection)
        if was_open:
            caller = Caller(connection.peer, connection.peer_epoch, NO_TRACE, NO_SPAN, 0.0, connection)
            for callback in self._lost:
                callback(caller)

    # --- inside

    def _flush(self) -> None:
        unflushed, self._unflushed = self._unflushed, []
        for connection in unflushed:
            connection.flush()

    def _accept(self, loop: asyncio.AbstractEventLoop) -> Connection:
        connection = Connection(self, loop)
        self._accepted.add(connection)
        return connection

    def _unknown(self, connection: Connection, f: Frame) -> None:
        if f.method == PING and f.kind == REQUEST:
            connection.reply(f, Ack(), self.epoch())
        elif f.method == BYE and f.kind == REQUEST:
            connection.leaving = True
        elif f.kind == REQUEST:
            known = METHODS.get(f.method)
            why = f"{self.name} does not answer {known[0].__name__ if known else f'method {f.method}'}"
            connection.reply_error(f, ErrorCode.UNKNOWN_METHOD, why, self.epoch())

    def _call_own(self, method: int, message: Message, done: Done, timeout_s: float, trace: Trace) -> None:
        loop = asyncio.get_running_loop()
        caller = Caller(self.name, self.epoch(), *trace, loop.time() + timeout_s)

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
            elif isinstance(result, Answer):
                result.then(done)
            else:
                self._track(loop.create_task(self._await_own(result, timeout_s, done, message)))

        loop.call_soon(run)

    async def _await_own(
        self, result: Awaitable[Message], timeout_s: float, done: Done, message: Message
    ) -> None:
        due = monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                reply = await result
        except asyncio.CancelledError:
            done(RpcError(ErrorCode.UNAVAILABLE, "this process is closing", self.name))
            raise
        except Exception as error:
            if _late(error, due):
                done(RpcError(ErrorCode.DEADLINE, "no answer in time", self.name))
                return
            log.exception("%s of %s failed in this process", type(message).__name__, self.name)
            done(RpcError(ErrorCode.INTERNAL, repr(error), self.name))
        else:
            done(reply)

    def _answered(self, connection: Connection, f: Frame, reply: Message, expires: float) -> None:
        if monotonic() <= expires:
            connection.reply(f, reply, self.epoch())

    def _later(self, connection: Connection, f: Frame, result: Awaitable[Message], expires: float) -> None:
        if isinstance(result, asyncio.Future):

            def answered(future: asyncio.Future[Message]) -> None:
                if future.cancelled() or monotonic() > expires:
                    return
                try:
                    connection.reply(f, future.result(), self.epoch())
                except Exception as error:
                    self._internal(connection, f, error)

            result.add_done_callback(answered)
            return
        self._track(connection.loop.create_task(self._await(connection, f, result, expires)))

    async def _await(
        self, connection: Connection, f: Frame, result: Awaitable[Message], expires: float
    ) -> None:
        try:
            async with asyncio.timeout_at(expires):
                connection.reply(f, await result, self.epoch())
        except Exception as error:
            if not _late(error, expires):  # else the caller has given up by itself
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


def _late(error: Exception, due: float) -> bool:
    """Whether this is our own limit on an answer; a loop's clock may be some milliseconds behind."""
    return isinstance(error, TimeoutError) and monotonic() > due - 0.01
