"""A channel: the control and the bulk connection of one pair, with a reader thread each.

Either side may send control messages; blocks are written by `write` on one side and land, checked, on the
other, which gives the credit back. Bytes in flight are bounded by the window (shm: by the ring). Losing either
connection loses the channel, and its owner is told once. Never retries: that is the owner's decision.
"""

from __future__ import annotations

import socket
import struct
import threading
import zlib
from collections.abc import Sequence

from runtimes.transport import sockets
from runtimes.transport.channel import (
    CREDIT,
    DONE,
    FRAME,
    WRITE,
    ChannelError,
    Frame,
    Landing,
    Receiver,
    Rung,
)
from runtimes.transport.handshake import Identity
from runtimes.transport.shm import Ring, Space

WINDOW = 16 << 20
_SCRATCH = 1 << 20
_CREDIT_TIMEOUT_S = 10.0
_SEND_TIMEOUT_S = 2.0  # of a control message: senders include event loops, which a stopped peer must not stop


class Channel:
    """Made by listener.py; `start` begins reading."""

    def __init__(
        self,
        control: socket.socket,
        bulk: socket.socket,
        peer: Identity,
        rung: Rung,
        ring: Ring | None,
        window: int,
    ) -> None:
        self.peer = peer
        self.rung: Rung = rung
        self._control = control
        self._bulk = bulk
        self._ring = ring
        self._space = Space(ring.size if ring is not None else window)
        self._credit = threading.Condition()
        self._control_lock = threading.Lock()
        self._bulk_lock = threading.Lock()
        self._lost: ChannelError | None = None
        self._state = threading.Lock()
        self._receiver: Receiver | None = None
        self._landing: Landing | None = None
        self._threads: list[threading.Thread] = []
        sockets.limit_sends(control, _SEND_TIMEOUT_S)

    def start(self, receiver: Receiver, landing: Landing | None) -> None:
        """`landing`: None on a side that only sends blocks."""
        self._receiver, self._landing = receiver, landing
        for target, name in ((self._read_control, "control"), (self._read_bulk, "bulk")):
            thread = threading.Thread(target=target, name=f"kv-{name}-{self.peer.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def lost(self) -> ChannelError | None:
        return self._lost

    @property
    def largest_write(self) -> int:
        """Bytes that any single write may have."""
        return self._space.size // 2

    def send(self, body: bytes) -> None:
        self._raise_if_lost()
        try:
            with self._control_lock:
                sockets.write_message(self._control, body)
        except ChannelError as error:
            self.lose(error)
            raise

    def free(self) -> int:
        """Bytes that can be written now without waiting for credit."""
        with self._credit:
            return self._space.largest

    def write(self, transfer: int, layer: int, target: int, blocks: Sequence[memoryview]) -> int:
        """Writes these blocks to `target`, `target` + 1, ... on the other side; waits for credit.

        All blocks have one size and lie behind each other. When it returns, the source may change. To be called
        from one thread at a time: credit comes back in the order of the writes.
        """
        size = sum(len(block) for block in blocks)
        checksums = struct.pack(f"<{len(blocks)}I", *(zlib.crc32(block) for block in blocks))
        offset = self._reserve(size)
        head = FRAME.pack(WRITE, layer, transfer, len(blocks), target, size, offset)
        try:
            if self._ring is not None:
                at = offset
                for block in blocks:
                    self._ring.view[at : at + len(block)] = block
                    at += len(block)
                with self._bulk_lock:
                    sockets.write(self._bulk, [head, checksums])
            else:
                with self._bulk_lock:
                    sockets.write(self._bulk, [head, checksums, *blocks])
        except ChannelError as error:
            self.lose(error)
            raise
        except ValueError as error:  # the ring is gone: closed by another thread
            raise self._lost or ChannelError("closed", str(error)) from error
        return size

    def finish(self, transfer: int, blocks: int) -> None:
        """Tells the other side that this transfer is complete."""
        self._send_bulk(FRAME.pack(DONE, 0, transfer, blocks, 0, 0, 0))

    def close(self, reason: ChannelError | None = None) -> None:
        self.lose(reason or ChannelError("closed", "closed on this side"))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2.0)

    # --- threads

    def _read_control(self) -> None:
        assert self._receiver is not None
        try:
            while True:
                self._receiver.message(self, sockets.read_message(self._control))
        except ChannelError as error:
            self.lose(error)

    def _read_bulk(self) -> None:
        head = bytearray(FRAME.size)
        try:
            while True:
                sockets.read_into(self._bulk, memoryview(head))
                frame = Frame(*FRAME.unpack(head))
                if frame.kind == WRITE:
                    self._take(frame)
                elif frame.kind == DONE and self._landing is not None:
                    self._landing.done(frame.transfer, frame.blocks)
                elif frame.kind == CREDIT:
                    self._give_back(frame.size)
                else:
                    raise ChannelError("protocol", f"bulk frame of kind {frame.kind}")
        except ChannelError as error:
            self.lose(error)
        except ValueError as error:
            self.lose(ChannelError("protocol", str(error)))
        finally:
            self._tell_lost()

    def _tell_lost(self) -> None:
        """By the reader of blocks, when it can't be writing any more: its owner may then reuse the memory."""
        if self._receiver is not None and self._lost is not None:
            self._receiver.lost(self, self._lost)
        if self._ring is not None:
            self._ring.close()

    def _take(self, frame: Frame) -> None:
        if self._landing is None or not 0 < frame.blocks <= 65536 or frame.size % frame.blocks:
            raise ChannelError("protocol", "a write that makes no sense here")
        checksums = struct.unpack(f"<{frame.blocks}I", sockets.read(self._bulk, 4 * frame.blocks))
        window = self._landing.window(frame)
        if window is not None and len(window) != frame.size:
            raise ChannelError("protocol", f"a write of {frame.size} bytes into {len(window)}")
        if self._ring is not None:
            if frame.offset + frame.size > self._ring.size:
                raise ChannelError("protocol", "a write beyond the ring")
            if window is not None:
                window[:] = self._ring.view[frame.offset : frame.offset + frame.size]
        elif window is not None:
            sockets.read_into(self._bulk, window)
        else:
            self._discard(frame.size)
        self._send_bulk(FRAME.pack(CREDIT, 0, frame.transfer, 0, 0, frame.size, 0))
        if window is not None:
            each = frame.size // frame.blocks
            broken = [
                frame.target + number
                for number, checksum in enumerate(checksums)
                if zlib.crc32(window[number * each : (number + 1) * each]) != checksum
            ]
            self._landing.landed(frame, broken)

    def _discard(self, size: int) -> None:
        scratch = memoryview(bytearray(min(size, _SCRATCH)))
        while size > 0:
            piece = scratch[: min(size, len(scratch))]
            sockets.read_into(self._bulk, piece)
            size -= len(piece)

    # --- credit, loss

    def _reserve(self, size: int) -> int:
        if size > self.largest_write:
            raise ValueError(f"a write of {size} bytes; at most {self.largest_write}")
        with self._credit:
            while True:
                self._raise_if_lost()
                offset = self._space.reserve(size)
                if offset is not None:
                    return offset
                if not self._credit.wait(_CREDIT_TIMEOUT_S):
                    break
        error = ChannelError("timeout", "the receiver gives no credit back")
        self.lose(error)
        raise error

    def _give_back(self, size: int) -> None:
        with self._credit:
            try:
                self._space.give_back(size)
            except (IndexError, ValueError) as error:
                raise ChannelError("protocol", f"credit that was never given: {error}") from error
            self._credit.notify_all()

    def _send_bulk(self, frame: bytes) -> None:
        self._raise_if_lost()
        try:
            with self._bulk_lock:
                sockets.write(self._bulk, [frame])
        except ChannelError as error:
            self.lose(error)
            raise

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost

    def lose(self, error: ChannelError) -> None:
        """Ends it, and does not wait for the readers. The first error counts."""
        with self._state:
            if self._lost is not None:
                return
            self._lost = error
        sockets.close(self._control)
        sockets.close(self._bulk)
        with self._credit:
            self._credit.notify_all()
        if self._receiver is None and self._ring is not None:  # never started
            self._ring.close()
