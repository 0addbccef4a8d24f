"""How many bytes may be under way: the sender's account of a ring at the receiver, and the wait for room in it.

The receiver gives each piece back when it has copied it out, in the order of the writes. Never knows what lies there.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Final

from runtimes.transport.channel import CREDIT, ChannelError, Frame, Stream

WAIT_S: Final = 10.0


class Credit:
    """One thread writes, another one brings credit back, any may lose it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._space = Space(size)
        self._changed = threading.Condition()
        self._lost: ChannelError | None = None

    @property
    def largest(self) -> int:
        """Bytes that any single write may have."""
        return self.size // 2

    def free(self) -> int:
        """Bytes that can be had now without waiting."""
        with self._changed:
            return self._space.largest

    def reserve(self, size: int) -> int:
        """Their place in the ring; waits for it."""
        if size > self.largest:
            raise ValueError(f"a write of {size} bytes; at most {self.largest}")
        with self._changed:
            while True:
                if self._lost is not None:
                    raise self._lost
                offset = self._space.reserve(size)
                if offset is not None:
                    return offset
                if not self._changed.wait(WAIT_S):
                    raise ChannelError("timeout", "the receiver gives no credit back")

    def give_back(self, size: int) -> None:
        with self._changed:
            try:
                self._space.give_back(size)
            except (IndexError, ValueError) as error:
                raise ChannelError("protocol", f"credit that was never given: {error}") from error
            self._changed.notify_all()

    def lose(self, error: ChannelError) -> None:
        """Wakes whoever waits."""
        with self._changed:
            self._lost = error
            self._changed.notify_all()


def give_back(stream: Stream, frame: Frame) -> None:
    """The receiver's: the bytes of this write are copied out. A stream that is broken says so to its reader."""
    with contextlib.suppress(ChannelError):
        stream.tell(Frame(CREDIT, frame.way, transfer=frame.transfer, size=frame.size))


class Space:
    """The sender's account of the ring: contiguous pieces in order, given back in the same order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._head = 0
        self._used = 0
        self._pieces: deque[tuple[int, int]] = deque()  # bytes given back, bytes incl. what was skipped

    @property
    def largest(self) -> int:
        """The largest piece that can be had now."""
        if self._used == 0:
            return self.size
        free = self.size - self._used
        to_end = self.size - self._head
        return free if free <= to_end else max(to_end, free - to_end)

    def reserve(self, size: int) -> int | None:
        """The offset of a piece of `size` bytes; None: not now."""
        if self._used == 0:
            self._head = 0
        skipped = 0 if self._head + size <= self.size else self.size - self._head
        if self._used + skipped + size > self.size:
            return None
        offset = 0 if skipped else self._head
        self._head = (offset + size) % self.size
        self._used += skipped + size
        self._pieces.append((size, skipped + size))
        return offset

    def give_back(self, size: int) -> None:
        expected, total = self._pieces.popleft()
        if expected != size:
            raise ValueError(f"credit of {size} bytes for a piece of {expected}")
        self._used -= total
