"""A channel: the control and the bulk connection of one pair, with a reader thread each.

Either side may send control messages; blocks are written by `write` on one side and land, checked, on the
other, which gives the credit back. Bytes in flight are bounded by what the rung can hold. Losing either
connection loses the channel, and its owner is told once. Never retries: that is the owner's decision.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Sequence

from runtimes.transport.channel import (
    CREDIT,
    DONE,
    FRAME,
    WRITE,
    Carrier,
    ChannelError,
    Frame,
    Landing,
    Receiver,
    Rung,
)
from runtimes.transport.handshake import Identity
from runtimes.transport.shm import Space

WINDOW = 16 << 20
_CREDIT_TIMEOUT_S = 10.0


class Channel:
    """Made by listener.py; `start` begins reading."""

    def __init__(self, carrier: Carrier, peer: Identity, passed: Sequence[str] = ()) -> None:
        self.peer = peer
        self.rung: Rung = carrier.rung
        #: Better rungs that were not taken, and why: "rdma: no RDMA device here".
        self.passed = tuple(passed)
        self._carrier = carrier
        self._space = Space(carrier.size)
        self._credit = threading.Condition()
        self._lost: ChannelError | None = None
        self._state = threading.Lock()
        self._receiver: Receiver | None = None
        self._landing: Landing | None = None
        self._reading = 0
        self._threads: list[threading.Thread] = []

    def start(self, receiver: Receiver, landing: Landing | None) -> None:
        """`landing`: None on a side that only sends blocks."""
        self._receiver, self._landing = receiver, landing
        readers = {"control": self._read_control, "bulk": self._read_bulk}
        self._reading = len(readers)
        for name, read in readers.items():
            label = f"kv-{name}-{self.peer.name}"
            thread = threading.Thread(target=self._read, args=(read,), name=label, daemon=True)
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
            self._carrier.send(body)
        except ChannelError as error:
            self.lose(error)
            raise self._lost or error from error

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
            self._carrier.put(head, checksums, blocks, offset)
        except ChannelError as error:
            self.lose(error)
            raise self._lost or error from error
        return size

    def finish(self, transfer: int, blocks: int) -> None:
        """Tells the other side that this transfer is complete."""
        self._tell(FRAME.pack(DONE, 0, transfer, blocks, 0, 0, 0))

    def close(self, reason: ChannelError | None = None) -> None:
        self.lose(reason or ChannelError("closed", "closed on this side"))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2.0)

    # --- threads

    def _read(self, read: Callable[[], None]) -> None:
        try:
            read()
        except ChannelError as error:
            self.lose(error)
        except ValueError as error:
            self.lose(ChannelError("protocol", str(error)))
        finally:
            # By the reader of blocks, when it can't be writing any more: its owner may then reuse the memory.
            if read == self._read_bulk and self._receiver is not None and self._lost is not None:
                self._receiver.lost(self, self._lost)
            with self._state:
                self._reading -= 1
                last = not self._reading
            if last:
                self._carrier.close()

    def _read_control(self) -> None:
        assert self._receiver is not None
        while True:
            self._receiver.message(self, self._carrier.receive())

    def _read_bulk(self) -> None:
        while True:
            frame, checksums = self._carrier.frame()
            if frame.kind == WRITE:
                self._take(frame, checksums)
            elif frame.kind == DONE and self._landing is not None:
                self._landing.done(frame.transfer, frame.blocks)
            elif frame.kind == CREDIT:
                self._give_back(frame.size)
            else:
                raise ChannelError("protocol", f"bulk frame of kind {frame.kind}")

    def _take(self, frame: Frame, checksums: bytes) -> None:
        if self._landing is None or not 0 < frame.blocks == len(checksums) // 4 or frame.size % frame.blocks:
            raise ChannelError("protocol", "a write that makes no sense here")
        window = self._landing.window(frame)
        if window is not None and len(window) != frame.size:
            raise ChannelError("protocol", f"a write of {frame.size} bytes into {len(window)}")
        self._carrier.fetch(frame, window)
        self._tell(FRAME.pack(CREDIT, 0, frame.transfer, 0, 0, frame.size, 0))
        if window is not None:
            each = frame.size // frame.blocks
            broken = [
                frame.target + number
                for number, (checksum,) in enumerate(struct.iter_unpack("<I", checksums))
                if zlib.crc32(window[number * each : (number + 1) * each]) != checksum
            ]
            self._landing.landed(frame, broken)

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

    def _tell(self, frame: bytes) -> None:
        self._raise_if_lost()
        try:
            self._carrier.tell(frame)
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
            unread = self._receiver is None
        self._carrier.end()
        with self._credit:
            self._credit.notify_all()
        if unread:
            self._carrier.close()
