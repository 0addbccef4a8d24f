"""One rpc connection, either side: frames in and out, calls under way, deadlines, back-pressure.

Hot file (STYLE 4). What one batch of received bytes makes us say leaves in one write, as does everything else that
is said in one loop iteration; one timer serves all deadlines; a call costs no coroutine. Calls made before the hello
is over wait here and count as not sent. It decides nothing about whom to call or what a message means: that is Rpc.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from kserve_ext.rpc import hello
from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.pending import MAX_PENDING, Done, Pending, finish
from kserve_ext.wire import frames
from kserve_ext.wire.frames import ErrorCode, Frame, FrameReader, frame
from kserve_ext.wire.messages import METHODS, Bye, Message

if TYPE_CHECKING:
    from kserve_ext.rpc.rpc import Rpc

log = logging.getLogger(__name__)

#: bytes that may wait for a peer that doesn't read, before calls to it are refused
HIGH_WATER_BYTES: Final = 8 * 1024 * 1024
#: bytes of one loop iteration after which we write without waiting for its end
FLUSH_BYTES: Final = 256 * 1024
#: bytes in the transport's own buffer before it tells us to wait
TRANSPORT_BYTES: Final = 1024 * 1024
#: what a stranger may send before the hello is over
STRANGER_BYTES: Final = 16 * 1024
HELLO_TIMEOUT_S: Final = 5.0
STALL_TIMEOUT_S: Final = 30.0
#: of a connection on which nothing goes: seconds until the kernel asks, between its questions, and how many
KEEP_ALIVE: Final = (10, 5, 3)
BYE: Final = next(number for number, (request, _) in METHODS.items() if request is Bye)
_NEW, _HELLO, _OPEN, _CLOSED = 0, 1, 2, 3

_encode = msgspec.msgpack.Encoder().encode
_reply_decoders = {m: msgspec.msgpack.Decoder(reply).decode for m, (_, reply) in METHODS.items()}
_error_body = msgspec.msgpack.Decoder(tuple[int, str]).decode


class Connection(asyncio.Protocol):
    """One side of one connection. `caller` dials and calls; the other side only answers."""

    __slots__ = (
        "_corked",
        "_flushes",
        "_greeting",
        "_out",
        "_out_bytes",
        "_paused",
        "_pending",
        "_reader",
        "_rpc",
        "_stall_timer",
        "_state",
        "_stranger_bytes",
        "_transport",
        "addr",
        "caller",
        "heard",
        "leaving",
        "loop",
        "peer",
        "peer_epoch",
    )

    def __init__(self, rpc: Rpc, loop: asyncio.AbstractEventLoop, addr: str = "") -> None:
        self._rpc = rpc
        self.loop = loop
        self.addr = addr  # whom we dial; "" on the listening side
        self.caller = bool(addr)
        self.peer = ""  # authenticated name
        self.peer_epoch = 0
        self.heard = False  # something has come (the caller's cache takes it back)
        self.leaving = False  # the caller has said Bye: its end is no loss
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._state = _NEW
        nonce = os.urandom(hello.NONCE_BYTES)
        self._greeting = hello.Greeting(rpc.name, rpc.key, nonce, caller=self.caller)
        self._stranger_bytes = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._corked = False  # data_received() or the end of the hello flushes
        self._paused = False  # the transport's buffer is full
        self._flushes = False  # Rpc flushes it at the end of this loop iteration
        self._pending = Pending(loop, addr)
        self._stall_timer: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class
        if self._state == _CLOSED:
            transport.abort()  # type: ignore[attr-defined]
            return
        transport.set_write_buffer_limits(TRANSPORT_BYTES)  # type: ignore[attr-defined]
        self._state = _HELLO
        self._stall_timer = self.loop.call_later(HELLO_TIMEOUT_S, self._stalled)
        _keep_alive(transport)
        if self.caller:
            transport.write(_hello(self._greeting.first()))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._corked = True
        try:
            received = self._reader.feed(data)
            if self._state == _OPEN:
                if self.caller:
                    self.heard = True
                    for f in received:
                        self._replied(f)
                else:
                    rpc, arrived = self._rpc, monotonic()
                    for f in received:
                        rpc.requested(self, f, arrived)
            elif self._state == _HELLO:
                self._greet(received, len(data))
        except frames.Malformed as error:
            self.drop(RpcError(ErrorCode.MALFORMED, str(error), self.addr))
        self._corked = False
        if self._out and not self._paused:
            self.flush()

    def pause_writing(self) -> None:
        self._paused = True
        self._stall_timer = self.loop.call_later(STALL_TIMEOUT_S, self._stalled)
        if not self.caller and self._transport is not None:
            self._transport.pause_reading()  # no new requests from a peer that doesn't take its replies

    def resume_writing(self) -> None:
        self._paused = False
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._state == _CLOSED:
            return
        if not self.caller and self._transport is not None:
            self._transport.resume_reading()
        if self._out and not self._flushes:
            self._flush_soon()

    def connection_lost(self, error: Exception | None) -> None:
        self.drop(
            RpcError(ErrorCode.UNAVAILABLE, f"connection lost ({error or 'closed by the peer'})", self.addr)
        )

    # --- calls

    @property
    def alive(self) -> bool:
        return self._state != _CLOSED

    @property
    def open(self) -> bool:
        return self._state == _OPEN

    @property
    def busy(self) -> bool:
        return self._state != _OPEN or len(self._pending) > 0

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
        pending = self._pending
        body = _encode(message)
        if self._state == _CLOSED or len(pending) >= MAX_PENDING or self._out_bytes > HIGH_WATER_BYTES:
            self._refuse(done)
            return
        if len(body) > frames.MAX_BODY_BYTES:
            why = f"{type(message).__name__} has {len(body)} bytes, at most {frames.MAX_BODY_BYTES} go"
            self.loop.call_soon(done, RpcError(ErrorCode.REFUSED, why, self.addr, sent=False))
            return
        call_id = pending.add(done, method, timeout_s)
        deadline_ms = max(1, int(timeout_s * 1000))
        self.write(frame(frames.REQUEST, method, call_id, body, epoch, deadline_ms, trace, span))

    def resume(self, request: bytes, done: Done, method: int, timeout_s: float) -> None:
        """Sends a request that another connection to the same peer was given, and died before it was written."""
        call_id = self._pending.add(done, method, timeout_s)
        self.write(frames.renumbered(request, call_id, max(1, int(timeout_s * 1000))))

    def reply(self, f: Frame, message: Message, epoch: int) -> None:
        if self._state != _OPEN:
            return
        body = _encode(message)
        if len(body) > frames.MAX_BODY_BYTES:
            why = f"{type(message).__name__} has {len(body)} bytes, at most {frames.MAX_BODY_BYTES} go"
            self.reply_error(f, ErrorCode.INTERNAL, why, epoch)
            return
        self.write(frame(frames.REPLY, f[1], f[2], body, epoch))

    def reply_error(self, f: Frame, code: ErrorCode, detail: str, epoch: int) -> None:
        if self._state == _OPEN:
            self.write(frame(frames.ERROR, f[1], f[2], _encode((int(code), detail)), epoch))

    def write(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > FLUSH_BYTES:
            self.flush()
        elif not self._flushes and not self._corked and self._state == _OPEN:
            self._flush_soon()

    def drop(self, error: RpcError, *, abort: bool = False) -> None:
        """Ends the connection; every call under way fails with `error`, those not written yet go to a new one."""
        if self._state == _CLOSED:
            return
        was_open = self._state == _OPEN
        self._state = _CLOSED
        unwritten, self._out = self._out if self.caller and was_open else [], []
        again = [(f, call) for f in unwritten if (call := self._pending.take(frames.call_id(f))) is not None]
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._transport is not None:
            abort = abort or self._paused or error.code == ErrorCode.MALFORMED
            self._transport.abort() if abort else self._transport.close()
        self._rpc.closed(self, was_open and not self.leaving)  # who hears of it may call again at once
        self._pending.fail(error)
        for request, (done, method, due) in again:
            self._rpc.outgoing.again(self.addr, request, done, method, due)

    def retire(self) -> None:
        """Closes one without calls under way that the cache keeps no longer; the peer is told that it is no loss."""
        assert not self.busy, f"{self.addr} is put out of the cache with calls under way"
        assert self._transport is not None
        self._state = _CLOSED
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._transport.write(frame(frames.REQUEST, BYE, 0, _encode(Bye()), deadline_ms=1000))
        self._transport.close()
        self._rpc.closed(self, False)

    def flush(self) -> None:
        self._flushes = False
        out, transport = self._out, self._transport
        if self._state != _OPEN or self._paused or transport is None or not out:
            return
        self._out = []
        self._out_bytes = 0
        transport.write(out[0] if len(out) == 1 else b"".join(out))

    # --- inside

    def _flush_soon(self) -> None:
        self._flushes = True
        self._rpc.flush_soon(self)

    def _refuse(self, done: Done) -> None:
        if self._state == _CLOSED:
            error = RpcError(ErrorCode.UNAVAILABLE, "connection is closed", self.addr, sent=False)
        elif len(self._pending) >= MAX_PENDING:
            why = f"{MAX_PENDING} calls are pending on its connection"
            error = RpcError(ErrorCode.REFUSED, why, self.addr, sent=False)
        else:
            why = f"it doesn't read: {self._out_bytes} bytes wait for it"
            error = RpcError(ErrorCode.REFUSED, why, self.addr, sent=False)
        self.loop.call_soon(done, error)

    def _replied(self, f: Frame) -> None:
        found = self._pending.take(f[2])
        if found is None:
            return  # its deadline has passed
        self.peer_epoch = f[4]
        done, method, _ = found
        result: Message | RpcError
        try:
            if f[0] == frames.REPLY:
                result = _reply_decoders[method](f[7])
            else:
                code, detail = _error_body(f[7])
                result = RpcError(ErrorCode(code), detail, self.addr)
        except (msgspec.DecodeError, ValueError) as error:
            result = RpcError(ErrorCode.MALFORMED, f"reply of {self.peer}: {error}", self.addr)
        finish(done, result)

    def _stalled(self) -> None:
        if self._state == _HELLO:
            self.drop(RpcError(ErrorCode.UNAVAILABLE, f"no hello within {HELLO_TIMEOUT_S} s", self.addr))
        elif self._paused and self._transport is not None:
            why = f"the peer has not read for {STALL_TIMEOUT_S} s"
            log.warning("%s: %s; the connection is given up", self.peer, why)
            self.drop(RpcError(ErrorCode.UNAVAILABLE, why, self.addr))

    def _greet(self, received: list[Frame], size: int) -> None:
        greeting, transport = self._greeting, self._transport
        assert transport is not None
        try:
            for k, f in enumerate(received):
                if f.kind != frames.HELLO:
                    raise hello.HelloFailed("the peer speaks before the hello is over")
                answer = greeting.received(f.body)
                if answer:
                    transport.write(_hello(answer))
                if greeting.done:
                    self._opened(received[k + 1 :])
                    return
        except hello.HelloFailed as error:
            if not isinstance(error, hello.HelloRefused):
                transport.write(_hello(hello.encode(hello.Refusal(str(error)))))
            log.warning("hello with %s failed: %s", self.addr or "a caller", error)
            self.drop(RpcError(ErrorCode.REFUSED, str(error), self.addr))
            return
        self._stranger_bytes += size
        if self._stranger_bytes > STRANGER_BYTES:
            raise frames.Malformed(f"{self._stranger_bytes} bytes before the hello is over")

    def _opened(self, early: list[Frame]) -> None:
        self.peer = self._greeting.peer
        self._state = _OPEN
        self._pending.sent = True
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self.caller:
            self.heard = True
            self._rpc.outgoing.opened(self)
        else:
            arrived = monotonic()
            for f in early:
                self._rpc.requested(self, f, arrived)


def _keep_alive(transport: asyncio.BaseTransport) -> None:
    """Whoever listens has no reason to speak first: its kernel finds out that a caller is gone without a word."""
    connected = transport.get_extra_info("socket")
    if connected is None or connected.family == socket.AF_UNIX:
        return
    idle, between, most = KEEP_ALIVE
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, most)


def _hello(body: bytes) -> bytes:
    return frame(frames.HELLO, 0, 0, body)
