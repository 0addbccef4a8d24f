"""Moves chunks between a GPU's paged cache and slots, several in flight: gather, check and copy overlap.

Outbound: blocks are gathered into a staging buffer on one stream and copied into a slot of pinned memory on another;
into a slot on a peer's GPU they are gathered at once. A slot is posted when its bytes are there. Inbound: a slot is
copied into a staging buffer (unless it is on this GPU already), checked and scattered; it is free again when it has
been read. Each side is driven by one thread, which never holds the interpreter while it waits for the GPU. What
carries bytes between slots (nothing, a network card, NVLink), and who grants slots, is the caller's. Retries nothing.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from ctypes import c_void_p
from typing import NamedTuple

from kserve_ext.core.kv_chunks import Chunk, fits
from runtimes.transport.cuda.blocks import ALIGNED, Moves, PagedBlocks
from runtimes.transport.cuda.driver import Device
from runtimes.transport.cuda.kernels import WORD
from runtimes.transport.cuda.slots import Slots

DEPTH = 4  # staging buffers: one being gathered, one being copied, two that wait for their turn

#: The number of a free slot; None = there is none, and it was told not to wait.
Acquire = Callable[[bool], "int | None"]
Post = Callable[[int, Chunk], None]


class _Stage(NamedTuple):
    """A buffer on the GPU as large as a slot's content, with what is to be waited for before it is used again."""

    buffer: int
    filled: c_void_p
    emptied: c_void_p


class _Side:
    """What both directions have: two streams and staging buffers used in turn."""

    def __init__(self, blocks: PagedBlocks, slots: Slots) -> None:
        self._blocks = blocks
        self._slots = slots
        self._device = device = blocks.device
        self.rows = slots.size // blocks.row_bytes
        if not self.rows:
            raise ValueError(f"slots of {slots.size} bytes have no room for a block of {blocks.block_bytes}")
        if slots.size % ALIGNED:
            raise ValueError(f"slots of {slots.size} bytes: the size has to be a multiple of {ALIGNED}")
        device.enter()
        self._first, self._second = device.stream(), device.stream()
        size = 0 if slots.on_gpu else slots.size
        self._memory = device.allocate(DEPTH * size) if size else 0
        self._stages = [
            _Stage(self._memory + number * size, device.event(), device.event()) for number in range(DEPTH)
        ]
        self._turn = 0

    def _stage(self) -> _Stage:
        self._turn = (self._turn + 1) % DEPTH
        return self._stages[self._turn]

    def close(self) -> None:
        """When no transfer is under way."""
        self._device.enter()
        for stream in (self._first, self._second):
            self._device.drain(stream)
        events = [event for stage in self._stages for event in stage[1:]]
        self._device.destroy([self._first, self._second], events)
        if self._memory:
            self._device.free(self._memory)


class _Numbers:
    """Block ids of one transfer in page-locked memory and on the GPU, and behind them a byte a block."""

    def __init__(self, device: Device, capacity: int) -> None:
        self._device = device
        self.capacity = capacity
        self._host = device.allocate_host(capacity * (WORD + 1))
        self.index = device.allocate(capacity * (WORD + 1))
        self.broken = self.index + capacity * WORD

    def load(self, blocks: Sequence[int], stream: c_void_p) -> None:
        (ctypes.c_uint64 * len(blocks)).from_address(self._host)[:] = list(blocks)
        self._device.copy(self.index, self._host, len(blocks) * WORD, stream)

    def clear(self, stream: c_void_p) -> None:
        self._device.zero(self.broken, self.capacity, stream)

    def read_broken(self, count: int, stream: c_void_p) -> list[int]:
        said = self._host + self.capacity * WORD
        self._device.copy(said, self.broken, count, stream)
        self._device.drain(stream)
        bytes_ = ctypes.string_at(said, count)
        return [number for number, byte in enumerate(bytes_) if byte] if any(bytes_) else []

    def free(self) -> None:
        self._device.free_host(self._host)
        self._device.free(self.index)


class Outbound(_Side):
    """From the cache into slots; `rows` is how many a slot takes."""

    def __init__(self, blocks: PagedBlocks, slots: Slots) -> None:
        super().__init__(blocks, slots)
        self._gather = Moves(blocks, blocks.gather)
        self._numbers = _Numbers(self._device, 1024)

    def send(
        self, sources: Sequence[int], chunks: Iterable[Chunk], acquire: Acquire, post: Post, after: int = 0
    ) -> None:
        """`sources`: the transfer's blocks here. `after`: the stream (its handle) that computes them.

        `post` is told when a chunk lies in its slot, in order. Returns when all are posted.
        """
        self._blocks.check(sources)
        device = self._device
        device.enter()
        if len(sources) > self._numbers.capacity:
            self._numbers.free()
            self._numbers = _Numbers(device, 2 * len(sources))
        computed = self._stages[0].filled
        device.record(computed, c_void_p(after))
        device.wait(self._first, computed)
        self._numbers.load(sources, self._first)
        pending: deque[tuple[int, Chunk, c_void_p]] = deque()

        def post_oldest() -> None:
            slot, chunk, done = pending.popleft()
            device.synchronize(done)
            post(slot, chunk)

        for chunk in chunks:
            slot = acquire(False)
            while slot is None:
                if pending:
                    post_oldest()
                slot = acquire(not pending)
            if len(pending) == DEPTH:
                post_oldest()
            pending.append((slot, chunk, self._issue(self._slots.addresses[slot], chunk)))
        while pending:
            post_oldest()

    def close(self) -> None:
        super().close()
        self._numbers.free()

    def _issue(self, target: int, chunk: Chunk) -> c_void_p:
        """The event after which the slot is filled."""
        device, (buffer, filled, emptied) = self._device, self._stage()
        if self._slots.on_gpu:
            self._gather(chunk, self._numbers.index, target, self._first)
            device.record(emptied, self._first)
            return emptied
        device.wait(self._first, emptied)
        self._gather(chunk, self._numbers.index, buffer, self._first)
        device.record(filled, self._first)
        device.wait(self._second, filled)
        device.copy(target, buffer, chunk.rows * self._blocks.row_bytes, self._second)
        device.record(emptied, self._second)
        return emptied


class Expected(NamedTuple):
    """A transfer that comes in. End it with `Inbound.finish`, whatever becomes of it."""

    numbers: _Numbers
    blocks: int


class Inbound(_Side):
    """From slots into the cache. `release` is told which slot has been read, in order."""

    def __init__(self, blocks: PagedBlocks, slots: Slots, release: Callable[[int], None]) -> None:
        super().__init__(blocks, slots)
        self._scatter = Moves(blocks, blocks.scatter)
        self._release = release
        self._pending: deque[tuple[int, c_void_p]] = deque()
        self._spare: list[_Numbers] = []

    def expect(self, targets: Sequence[int]) -> Expected:
        """A transfer into these blocks of the cache."""
        self._blocks.check(targets)
        self._device.enter()
        fit = next((numbers for numbers in self._spare if numbers.capacity >= len(targets)), None)
        if fit is None:
            fit = _Numbers(self._device, max(1024, 2 * len(targets)))
        else:
            self._spare.remove(fit)
        fit.load(targets, self._second)
        fit.clear(self._second)
        return Expected(fit, len(targets))

    def take(self, slot: int, chunk: Chunk, expected: Expected) -> None:
        """A filled slot's chunk goes into the cache. Returns at once; an earlier slot is released on the way."""
        device, numbers = self._device, expected.numbers
        if not fits(chunk, self._blocks.layers, expected.blocks, self.rows):
            raise ValueError(f"{chunk}: beyond its slot, or the {expected.blocks} blocks of this transfer")
        device.enter()
        if len(self._pending) == DEPTH - 1:
            self._free()
        buffer, filled, emptied = self._stage()
        source = self._slots.addresses[slot]
        if self._slots.on_gpu:
            self._scatter(chunk, numbers.index, source, self._second, numbers.broken)
            device.record(emptied, self._second)
        else:
            device.wait(self._first, filled)  # what was scattered from it last
            device.copy(buffer, source, chunk.rows * self._blocks.row_bytes, self._first)
            device.record(emptied, self._first)
            device.wait(self._second, emptied)
            self._scatter(chunk, numbers.index, buffer, self._second, numbers.broken)
            device.record(filled, self._second)
        self._pending.append((slot, emptied))

    def flush(self) -> None:
        """Releases every slot taken. To be called whenever nothing else is there to be taken: the sender may wait."""
        self._device.enter()
        while self._pending:
            self._free()

    def finish(self, expected: Expected) -> list[int]:
        """Waits until everything taken lies in the cache. Which blocks of the transfer must not be used."""
        self.flush()
        broken = expected.numbers.read_broken(expected.blocks, self._second)
        self._spare.append(expected.numbers)
        return broken

    def close(self) -> None:
        super().close()
        while self._spare:
            self._spare.pop().free()

    def _free(self) -> None:
        slot, read = self._pending.popleft()
        self._device.synchronize(read)
        self._release(slot)
