"""One rpc connection, either side: frames in and out, calls under way, deadlines, the hello.

Hot file (STYLE 4). Writes of one loop iteration leave in one send; one timer serves all deadlines of a connection;
a call costs no coroutine. It decides nothing about whom to call or what a message means: that is rpc.Rpc.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from kserve_ext.rpc import hello
from kserve_ext.rpc.errors import RpcError
from kserve_ext.wire import frames
from kserve_ext.wire.frames import ErrorCode, Frame, FrameReader, frame
from kserve_ext.wire.messages import METHODS, Message

if TYPE_CHECKING:
    from kserve_ext.rpc.rpc import Rpc

Done = Callable[[Message | RpcError], None]

MAX_PENDING: Final = 65_536
HIGH_WATER_BYTES: Final = 8 * 1024 * 1024
HELLO_TIMEOUT_S: Final = 5.0
_NEW, _HELLO, _OPEN, _CLOSED = 0, 1, 2, 3

_encode = msgspec.msgpack.Encoder().encode
_reply_decoders = {m: msgspec.msgpack.Decoder(reply).decode for m, (_, reply) in METHODS.items()}
_error_body = msgspec.msgpack.Decoder(tuple[int, str]).decode


class Connection(asyncio.Protocol):
    """One side of one connection. `caller` dials and calls; the other side only answers."""

    __slots__ = (
        "_challenge",
        "_deadlines",
        "_flush_at",
        "_hello_timer",
        "_next_id",
        "_nonce",
        "_out",
        "_pending",
        "_reader",
        "_rpc",
        "_state",
        "_timer",
        "_transport",
        "addr",
        "caller",
        "loop",
        "opened",
        "peer",
        "peer_epoch",
    )

    def __init__(self, rpc: Rpc, loop: asyncio.AbstractEventLoop, addr: str = "") -> None:
        self._rpc = rpc
        self.loop = loop
        self.addr = addr  # whom we dialled; "" on the listening side
        self.caller = bool(addr)
        self.peer = ""  # authenticated name
        self.peer_epoch = 0
        self.opened: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._state = _NEW
        self._nonce = b""
        self._challenge: hello.Challenge | None = None
        self._hello_timer: asyncio.TimerHandle | None = None
        self._out: list[bytes] = []
        self._flush_at: asyncio.Handle | None = None
        self._next_id = 1
        self._pending: dict[int, tuple[Done, int]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class
        self._state = _HELLO
        self._nonce = os.urandom(hello.NONCE_BYTES)
        self._hello_timer = self.loop.call_later(HELLO_TIMEOUT_S, self._hello_late)
        if self.caller:
            self._challenge = hello.Challenge(self._rpc.name, self._nonce)
            self._send_hello(self._challenge)

    def data_received(self, data: bytes) -> None:
        try:
            for f in self._reader.feed(data):
                kind = f[0]
                if self._state == _OPEN:
                    if kind == frames.REQUEST:
                        self._rpc.requested(self, f)
                    elif kind == frames.REPLY or kind == frames.ERROR:
                        self._replied(f)
                elif self._state == _HELLO:
                    self._greet(f)
        except frames.Malformed as error:
            self.drop(RpcError(ErrorCode.MALFORMED, str(error), self.addr))
        except hello.HelloFailed as error:
            self._send_hello(hello.Refusal(str(error)))
            self._flush()
            self.drop(RpcError(ErrorCode.REFUSED, str(error), self.addr, sent=False))

    def connection_lost(self, error: Exception | None) -> None:
        self.drop(
            RpcError(ErrorCode.UNAVAILABLE, f"connection lost ({error or 'closed by the peer'})", self.addr)
        )

    # --- calls

    @property
    def alive(self) -> bool:
        return self._state != _CLOSED

    @property
    def under_way(self) -> int:
        return len(self._pending)

    def call(
        self,
        method: int,
        message: Message,
        done: Done,
        timeout_s: float,
        epoch: int,
        trace: bytes,
        span: bytes,
    ) -> None:
        """Sends a request; `done` gets the reply or an RpcError, never within this call."""
        transport = self._transport
        if self._state != _OPEN or transport is None or len(self._pending) >= MAX_PENDING:
            why = "not open" if self._state != _OPEN else f"{MAX_PENDING} calls are pending on it"
            code = ErrorCode.UNAVAILABLE if self._state != _OPEN else ErrorCode.REFUSED
            self.loop.call_soon(done, RpcError(code, f"connection is {why}", self.addr, sent=False))
            return
        call_id = self._next_id
        self._next_id = call_id + 1 if call_id < 0xFFFFFFFF else 1
        self._pending[call_id] = (done, method)
        due = self.loop.time() + timeout_s
        heapq.heappush(self._deadlines, (due, call_id))
        if self._timer is None:
            self._timer = self.loop.call_at(due, self._expire)
        self.write(
            frame(
                frames.REQUEST, method, call_id, _encode(message), epoch, int(timeout_s * 1000), trace, span
            )
        )

    def reply(self, f: Frame, message: Message, epoch: int) -> None:
        if self._state == _OPEN:
            self.write(frame(frames.REPLY, f[1], f[2], _encode(message), epoch))

    def reply_error(self, f: Frame, code: ErrorCode, detail: str, epoch: int) -> None:
        if self._state == _OPEN:
            self.write(frame(frames.ERROR, f[1], f[2], _encode((int(code), detail)), epoch))

    def write(self, data: bytes) -> None:
        self._out.append(data)
        if self._flush_at is None:
            self._flush_at = self.loop.call_soon(self._flush)

    def drop(self, error: RpcError) -> None:
        """Ends the connection; every call under way fails with `error`."""
        if self._state == _CLOSED:
            return
        was_open = self._state == _OPEN
        self._state = _CLOSED
        for timer in (self._timer, self._hello_timer, self._flush_at):
            if timer is not None:
                timer.cancel()
        if self._transport is not None:
            self._transport.abort() if error.code == ErrorCode.MALFORMED else self._transport.close()
        pending, self._pending = self._pending, {}
        for done, _ in pending.values():
            done(RpcError(error.code, error.detail, self.addr, sent=True))
        if not self.opened.done():
            self.opened.set_exception(RpcError(error.code, error.detail, self.addr, sent=False))
            self.opened.exception()  # whoever waits has it; nobody waiting is no mistake
        self._rpc.closed(self, was_open)

    # --- inside

    def _flush(self) -> None:
        self._flush_at = None
        out, self._out = self._out, []
        transport = self._transport
        if transport is None or self._state == _CLOSED or not out:
            return
        transport.write(out[0] if len(out) == 1 else b"".join(out))
        if transport.get_write_buffer_size() > HIGH_WATER_BYTES:
            why = f"the peer has not read {HIGH_WATER_BYTES} bytes of ours"
            self.drop(RpcError(ErrorCode.UNAVAILABLE, why, self.addr))

    def _replied(self, f: Frame) -> None:
        self.peer_epoch = f[4]
        found = self._pending.pop(f[2], None)
        if found is None:
            return  # its deadline has passed
        done, method = found
        try:
            if f[0] == frames.REPLY:
                done(_reply_decoders[method](f[7]))
            else:
                code, detail = _error_body(f[7])
                done(RpcError(ErrorCode(code), detail, self.addr))
        except (msgspec.DecodeError, ValueError) as error:
            done(RpcError(ErrorCode.MALFORMED, f"reply of {self.peer}: {error}", self.addr))

    def _expire(self) -> None:
        """Fails the calls whose time is up, and arms the timer for the next one still pending."""
        self._timer = None
        now = self.loop.time()
        heap = self._deadlines
        while heap and (heap[0][1] not in self._pending or heap[0][0] <= now + 0.001):
            _, call_id = heapq.heappop(heap)
            found = self._pending.pop(call_id, None)
            if found is not None:
                found[0](RpcError(ErrorCode.DEADLINE, "no answer in time", self.addr))
        if heap and self._state == _OPEN:
            self._timer = self.loop.call_at(heap[0][0], self._expire)

    def _send_hello(self, message: msgspec.Struct) -> None:
        self.write(frame(frames.HELLO, 0, 0, hello.encode(message)))

    def _hello_late(self) -> None:
        if self._state == _HELLO:
            why = f"no hello within {HELLO_TIMEOUT_S} s"
            self.drop(RpcError(ErrorCode.UNAVAILABLE, why, self.addr, sent=False))

    def _greet(self, f: Frame) -> None:
        if f.kind != frames.HELLO:
            raise hello.HelloFailed("a request before the hello")
        key = self._rpc.key
        if self.caller:
            assert self._challenge is not None
            try:
                response = hello.decode(f.body, hello.Response)
            except hello.HelloFailed:
                raise hello.HelloFailed(hello.decode(f.body, hello.Refusal).why) from None
            proof = hello.prove(key, b"listener", self._challenge, response.name, response.nonce)
            hello.check(proof, response.proof, response.name)
            self._send_hello(
                hello.Confirm(hello.prove(key, b"caller", self._challenge, response.name, response.nonce))
            )
            self.peer = response.name
            self._open()
        elif self._challenge is None:
            self._challenge = hello.decode(f.body, hello.Challenge)
            proof = hello.prove(key, b"listener", self._challenge, self._rpc.name, self._nonce)
            self._send_hello(hello.Response(self._rpc.name, self._nonce, proof))
        else:
            proof = hello.prove(key, b"caller", self._challenge, self._rpc.name, self._nonce)
            hello.check(proof, hello.decode(f.body, hello.Confirm).proof, self._challenge.name)
            self.peer = self._challenge.name
            self._open()

    def _open(self) -> None:
        self._state = _OPEN
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self.opened.set_result(None)
