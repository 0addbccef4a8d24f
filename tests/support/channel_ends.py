"""What the owner of a channel is to it, for tests: memory that blocks land in, and everything that it is told."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from queue import SimpleQueue

from runtimes.transport.channel import ChannelError, Extent, Frame

KEY = b"k" * 32
BLOCK = 64 << 10
WAIT_S = 60.0


class Ear:
    """Both Receiver and Landing; everything that happens goes into a queue."""

    def __init__(self, blocks: int = 128) -> None:
        self.memory = memoryview(memory(blocks * BLOCK))
        self.happened: SimpleQueue[tuple[object, ...]] = SimpleQueue()

    def message(self, channel: object, body: bytes) -> None:
        self.happened.put(("message", body))

    def lost(self, channel: object, error: ChannelError) -> None:
        self.happened.put(("lost", error.reason))

    def window(self, frame: Frame) -> memoryview | None:
        return self.memory[frame.target * BLOCK : (frame.target + frame.blocks) * BLOCK]

    def landed(self, frame: Frame, broken: list[int]) -> None:
        self.happened.put(("landed", frame.target, frame.blocks, broken))

    def done(self, transfer: int, blocks: int) -> None:
        self.happened.put(("done", transfer, blocks))

    def next(self) -> tuple[object, ...]:
        return self.happened.get(timeout=WAIT_S)


def memory(size: int) -> mmap.mmap:
    """Fresh memory that is all there. Under User-Mode Linux the first touch of a page costs 0.1 ms otherwise."""
    made = mmap.mmap(-1, size)
    made.madvise(23)  # MADV_POPULATE_WRITE
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(made)))
    libc = ctypes.CDLL(None)
    for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
        assert libc.mprotect(address, ctypes.c_size_t(size), protection) == 0
    return made


def extent(memory: memoryview) -> Extent:
    return Extent(ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory), owner=memory)


def until(condition: Callable[[], bool]) -> None:
    """Other threads bring it about."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
