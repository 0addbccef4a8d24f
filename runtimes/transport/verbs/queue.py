"""One queue pair with its accounts: requests out, completions and messages in.

Any thread may send; one thread receives. A sender waits while the device's queue is full, the receiver while nothing
has come, both with the interpreter's lock released. Messages are cut into buffers of fixed size; an immediate says
how many bytes are still to come. The first error counts: it ends the queue pair, and everybody is told that one.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from runtimes.transport.channel import ChannelError
from runtimes.transport.verbs import memory, reasons
from runtimes.transport.verbs.turn import Turn
from runtimes.transport.verbs.work import Piece, cut

if TYPE_CHECKING:
    from runtimes.transport.verbs.native import Card, Completion, Request

SEND_DEPTH: Final = 128
BUFFERS: Final = 32
BUFFER: Final = 4096
WAIT_S: Final = 10.0
#: How long the device may carry out nothing of what was posted. Most give up by themselves long before; soft-RoCE
#: tries for ever while its link is down, and so does every device while the peer's process stands still.
STALL_S = 10.0
_MAX_MESSAGE: Final = 16 << 20
_SHORT_S: Final = 0.2
#: How long a thread may sleep behind a notice that another one has taken.
_SHARED_S: Final = 0.02
_DESCRIPTORS: Final = 3  # of completions, of the clock, and the one that is watched


class QueuePair:
    """Made unconnected; `connect` with what the peer has said of its own."""

    def __init__(
        self, card: Card, buffer: int = BUFFER, buffers: int = BUFFERS, depth: int = SEND_DEPTH
    ) -> None:
        from runtimes.transport.verbs.native import BATCH, Request

        self._request: type[Request] = Request
        self._batch = min(BATCH, depth)
        self.card = card
        self._buffer, self._buffers, self._depth = buffer, buffers, min(depth, card.place.max_work)
        self._sending = Turn()
        self._living = threading.Lock()  # held while the device is told to fail, and while it is closed
        self._posted = self._completed = 0
        self._error: ChannelError | None = None
        self._flushed = self._closed = False
        self._send_armed = self._receive_armed = False
        self._inbox: deque[Completion] = deque()
        self._partial = bytearray()
        self._watched: int | None = None
        #: Requests carried out when we last looked, if others were under way; and when it first was that number.
        self._stuck: int | None = None
        self._since = 0.0
        self._kept = memory.register(card, mmap.mmap(-1, buffer * (self._depth + buffers)), remote=False)
        try:
            self._queue = card.queue(self._depth, buffers)
        except BaseException:
            self._kept.close()
            raise
        self.number, self.first_packet = self._queue.number, self._queue.first_packet
        first = self._kept.address + self._depth * buffer
        self._queue.add_buffers(first, self._kept.key.local, buffer, buffers)
        #: Looks at the clock by itself: a timeout would make whoever waits look at it for every message.
        self._clock = _ticks(STALL_S / 4)
        self._waiting = select.epoll()
        self._waiting.register(self._queue.received.descriptor, select.EPOLLIN)
        self._waiting.register(self._clock, select.EPOLLIN)
        self._room = select.poll()
        self._room.register(self._queue.sent.descriptor, select.POLLIN)

    @property
    def place(self) -> str:
        return f"{self.card.place.device}:{self.card.place.port}"

    def connect(self, number: int, first_packet: int, gid: str, lid: int, mtu: int, reads: int) -> None:
        for each in range(self._buffers):
            self._queue.post_buffer(each)
        self._queue.connect(number, first_packet, gid, lid, mtu, reads)

    # --- out: any thread

    def write(self, pieces: Sequence[Piece], immediate: int | None = None, timeout_s: float = WAIT_S) -> int:
        """WRITEs them, in order; a ticket for `wait`. `immediate` arrives at the peer behind the last byte."""
        requests = self._requests("write", pieces)
        if immediate is not None:
            if not requests:
                raise ValueError("an immediate needs bytes to come behind")
            requests[-1] = requests[-1]._replace(op="write+", immediate=immediate)
        return self._post(requests, (), timeout_s)

    def read(self, pieces: Sequence[Piece], timeout_s: float = WAIT_S) -> int:
        """READs into `local` what is at `remote`, if that is readable; a ticket for `wait`."""
        return self._post(self._requests("read", pieces), (), timeout_s)

    def send(self, body: bytes | memoryview, behind: Sequence[Piece] = (), timeout_s: float = WAIT_S) -> int:
        """A message. It arrives behind the pieces, which are written before it."""
        if len(body) <= self._buffer and not behind:
            return self._send_short(body, timeout_s)
        if len(body) > _MAX_MESSAGE:
            raise ChannelError("protocol", f"a message of {len(body)} bytes; at most {_MAX_MESSAGE}")
        view = memoryview(body)
        parts = [view[at : at + self._buffer] for at in range(0, len(view), self._buffer)] or [view]
        return self._post(self._requests("write", behind), parts, timeout_s)

    def wait(self, ticket: int, timeout_s: float = WAIT_S) -> None:
        """Until everything up to the ticket has been carried out. Others may send meanwhile."""
        told = select.poll()
        told.register(self._queue.sent.descriptor, select.POLLIN)
        end = time.monotonic() + timeout_s
        while True:
            with self._sending:
                self._reap()
                if self._completed >= ticket:
                    return
                self._raise()
                if self._send_armed and told.poll(0):  # unless another thread has taken notice of it
                    self._queue.sent.clear()
                    self._send_armed = False
                if not self._send_armed:
                    self._queue.sent.arm()
                    self._send_armed = True
                    continue  # what was carried out before the device was asked to tell
            left = end - time.monotonic()
            if left <= 0:
                raise self._late(timeout_s)
            told.poll(min(left, _SHARED_S) * 1000)

    def carried_out(self) -> int:
        """The ticket up to which everything has been; while somebody else waits for room, as far as was known then.

        Whoever asks may hold what an engine needs, and must not be held up with it.
        """
        if self._sending.acquire(0):
            try:
                self._reap()
                self._raise()
            finally:
                self._sending.release()
        return self._completed

    def settle(self, timeout_s: float) -> None:
        """Until everything that was posted has been carried out, or can't be any more."""
        if self._sending.acquire(timeout_s):  # not had: somebody waits for the same, in vain so far
            try:
                with contextlib.suppress(ChannelError):
                    self._until(lambda: self._completed == self._posted, timeout_s)
            finally:
                self._sending.release()

    # --- in: one thread

    def watch(self, descriptor: int) -> None:
        """`receive` also ends when this becomes readable: the peer has gone. What has arrived comes first."""
        self._watched = descriptor
        self._waiting.register(descriptor, select.EPOLLIN)

    def receive(self) -> bytes | int:
        """The next message (bytes) or immediate (int); waits for it."""
        while True:
            while self._inbox:
                done = self._inbox.popleft()
                if done.status != reasons.SUCCESS:
                    raise self._broken(done)
                whole = self._taken(done)
                self._queue.post_buffer(done.id)
                if whole is not None:
                    return whole
            self._inbox.extend(self._arrivals())

    # --- end

    def why(self) -> ChannelError | None:
        """The first error, which lies where something was asked for; None: there is none. Not after `close`."""
        if self._sending.acquire(_SHORT_S):  # not had: somebody waits for room, and looks itself
            try:
                self._reap()
            finally:
                self._sending.release()
        return self._failure()

    def fail(self) -> None:
        """Wakes everybody who waits here, on this side; may be called from any thread."""
        with self._living:
            if not self._closed:
                self._queue.fail()

    def close(self) -> None:
        """To be called when nobody receives any more."""
        self.fail()
        with self._sending, self._living:
            if self._closed:
                return
            self._closed = True
            self._waiting.close()
            os.close(self._clock)
            self._queue.close()
            self._kept.close()

    # --- inside

    def _requests(self, op: str, pieces: Sequence[Piece]) -> list[Request]:
        make = self._request
        return [
            make(op, local, lkey, size, remote, rkey)
            for local, lkey, remote, rkey, size in cut(pieces, self.card.place.max_message)
        ]

    def _post(self, requests: list[Request], parts: Sequence[memoryview], timeout_s: float) -> int:
        left = sum(len(part) for part in parts)
        total = len(requests) + len(parts)
        with self._sending:
            self._raise()
            for start in range(0, total, self._batch):
                count = min(self._batch, total - start)
                if self._posted + count - self._completed > self._depth:
                    self._until(lambda: self._posted + count - self._completed <= self._depth, timeout_s)  # noqa: B023
                batch = requests[start : start + count]
                for part in parts[max(0, start - len(requests)) : max(0, start + count - len(requests))]:
                    left -= len(part)
                    batch.append(self._copied(part, self._posted + len(batch), left))
                self._queue.post(batch, self._posted + count)
                self._posted += count
            return self._posted

    def _send_short(self, body: bytes | memoryview, timeout_s: float) -> int:
        """What fits one buffer, in as few steps as can be: each costs more than the device's part."""
        with self._sending:
            if self._closed or self._error is not None or self._flushed:
                self._raise()
            if self._posted - self._completed >= self._depth:
                self._until(lambda: self._posted - self._completed < self._depth, timeout_s)
            kept, size = self._kept, len(body)
            assert kept.view is not None
            at = self._posted % self._depth * self._buffer
            kept.view[at : at + size] = body
            self._posted += 1
            self._queue.post_message(kept.address + at, kept.key.local, size, self._posted)
            return self._posted

    def _copied(self, part: memoryview, number: int, left: int) -> Request:
        """Into the buffer of this request: free, since at most `depth` of them are under way."""
        assert self._kept.view is not None
        at = number % self._depth * self._buffer
        self._kept.view[at : at + len(part)] = part
        return self._request("send", self._kept.address + at, self._kept.key.local, len(part), immediate=left)

    def _until(self, enough: Callable[[], bool], timeout_s: float) -> None:
        """With `_sending` held."""
        end = time.monotonic() + timeout_s
        while True:
            self._reap()
            if enough():
                return
            self._raise()
            if not self._send_armed:
                self._queue.sent.arm()
                self._send_armed = True
                continue  # what was carried out before the device was asked to tell
            left = end - time.monotonic()
            if left <= 0 or not self._room.poll(left * 1000):
                raise self._late(timeout_s)
            self._queue.sent.clear()
            self._send_armed = False

    def _late(self, seconds: float) -> ChannelError:
        return ChannelError("timeout", f"{self.place}: the peer's device takes nothing for {seconds:g} s")

    def _reap(self) -> None:
        if self._closed:
            return
        for done in self._queue.poll(self._queue.sent, self._depth):
            if done.status == reasons.SUCCESS:
                self._completed = done.id
            else:
                self._note(done, "a request")

    def _arrivals(self) -> list[Completion]:
        queue = self._queue
        while True:
            found = queue.poll(queue.received, self._buffers)
            if found:
                return found
            if not self._receive_armed:
                queue.received.arm()
                self._receive_armed = True
                continue  # what came before the device was asked to tell
            ready = [descriptor for descriptor, _ in self._waiting.poll(None, _DESCRIPTORS)]
            if queue.received.descriptor in ready:
                queue.received.clear()
                self._receive_armed = False
            elif self._clock in ready:
                os.read(self._clock, 8)
                self._look()
            elif self._watched in ready:
                found = queue.poll(queue.received, self._buffers)
                if not found:
                    raise self.why() or ChannelError("closed", "the peer has closed the connection")
                return found

    def _look(self) -> None:
        """Now and then, while nothing arrives: does what was posted go out? Raises ChannelError when it doesn't."""
        if not self._sending.acquire(0):
            return  # whoever waits there looks itself
        try:
            self._reap()
            self._raise()
            now = time.monotonic()
            stuck = None if self._completed == self._posted else self._completed
            if stuck is None or stuck != self._stuck:
                self._stuck, self._since = stuck, now
            elif now - self._since > STALL_S:
                why = f"{self.place}: the peer's device takes nothing: link down, or its process stands still"
                self._error = ChannelError("unreachable", why)
                raise self._error
        finally:
            self._sending.release()

    def _taken(self, done: Completion) -> bytes | int | None:
        """What is whole with this completion; None: more of the message is to come."""
        if not done.message:
            return done.immediate or 0
        assert self._kept.view is not None
        at = (self._depth + done.id) * self._buffer
        part = self._kept.view[at : at + done.size]
        if not done.immediate and not self._partial:
            return bytes(part)
        if len(self._partial) + done.size + (done.immediate or 0) > _MAX_MESSAGE:
            raise ChannelError("protocol", "a message beyond the limit")
        self._partial += part
        if done.immediate:
            return None
        whole, self._partial = bytes(self._partial), bytearray()
        return whole

    def _broken(self, done: Completion) -> ChannelError:
        if done.status != reasons.FLUSHED:
            self._note(done, "a message to come")
        return self.why() or reasons.error(done.status, "a message to come", self.place)

    def _note(self, done: Completion, what: str) -> None:
        if done.status == reasons.FLUSHED:
            self._flushed = True
        elif self._error is None:
            self._error = reasons.error(done.status, what, self.place, done.vendor)

    def _failure(self) -> ChannelError | None:
        return self._error or (
            reasons.error(reasons.FLUSHED, "a request", self.place) if self._flushed else None
        )

    def _raise(self) -> None:
        if self._closed:
            raise ChannelError("closed", "closed on this side")
        failure = self._failure()
        if failure is not None:
            raise failure


def _ticks(seconds: float) -> int:
    """A descriptor that becomes readable so often (timerfd, which Python has from 3.13 on)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC))
    whole, part = divmod(int(seconds * 1_000_000_000), 1_000_000_000)
    period = (ctypes.c_long * 4)(whole, part, whole, part)  # struct itimerspec: again, and first
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, period, None):
        raise ChannelError("device", f"no timer: {os.strerror(ctypes.get_errno())}")
    return descriptor
