"""Pieces between a GPU's paged cache and memory that travels, several in flight: gather, check and copy overlap.

Outbound: blocks are gathered into a staging buffer on one stream and copied into page-locked memory on another; into
memory of a peer's GPU they are gathered at once. Inbound: a piece is copied into a staging buffer (unless it is on
this GPU already), checked and scattered. What is done is told in order. Each side is driven by one thread, which
never holds the interpreter while it waits for the GPU. What carries the bytes on (nothing, a network card, NVLink),
and who says where they may lie, is the caller's. Retries nothing.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from typing import Generic, NamedTuple, TypeVar

from runtimes.transport.cuda import kernels
from runtimes.transport.cuda.blocks import ALIGNED, Moves, PagedBlocks

DEPTH = 4  # staging buffers: one being gathered, one being copied, two that wait for their turn
Tag = TypeVar("Tag")


class _Stage(NamedTuple):
    """A buffer on the GPU as large as a piece, with what is to be waited for before it is used again."""

    buffer: int
    filled: c_void_p
    emptied: c_void_p
    broken: int  # a byte a block, in page-locked memory


class _Side(Generic[Tag]):
    """What both directions have: two streams, and staging buffers used in turn."""

    def __init__(self, blocks: PagedBlocks, most: int, on_gpu: bool) -> None:
        """`most`: blocks of a piece. `on_gpu`: pieces lie in a GPU's memory, and need no staging."""
        self._blocks = blocks
        self._most = min(most, kernels.BLOCKS)
        self._on_gpu = on_gpu
        self._device = device = blocks.device
        device.enter()
        self._first, self._second = device.stream(), device.stream()
        size = 0 if on_gpu else -(-blocks.piece_bytes(most) // ALIGNED) * ALIGNED
        self._memory = device.allocate(DEPTH * size) if size else 0
        self._broken = device.allocate_host(DEPTH * kernels.BLOCKS)
        self._stages = [
            _Stage(
                self._memory + number * size,
                device.event(),
                device.event(),
                self._broken + number * kernels.BLOCKS,
            )
            for number in range(DEPTH)
        ]
        self._turn = 0
        self._pending: deque[tuple[Tag, Sequence[int], c_void_p, int]] = deque()

    @property
    def pending(self) -> int:
        """Pieces that were begun, and not told yet."""
        return len(self._pending)

    def next(self) -> None:
        """Waits for the piece that was begun first, and tells that it is done. By whichever thread."""
        self._device.enter()
        tag, chosen, done, broken = self._pending.popleft()
        self._device.synchronize(done)
        self._tell(tag, chosen, broken)

    def flush(self) -> None:
        """Waits for everything that was begun."""
        while self._pending:
            self.next()

    def _begin(self, chosen: Sequence[int]) -> _Stage:
        self._blocks.check(chosen)
        if len(chosen) > self._most:
            raise ValueError(f"a piece of {len(chosen)} blocks: at most {self._most}")
        self._device.enter()
        if len(self._pending) == DEPTH:
            self.next()
        self._turn = (self._turn + 1) % DEPTH
        return self._stages[self._turn]

    def _tell(self, tag: Tag, chosen: Sequence[int], broken: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """When nobody begins or waits any more. What was begun is not told."""
        device = self._device
        device.enter()
        for stream in (self._first, self._second):
            device.drain(stream)
        self._pending.clear()
        events = [event for stage in self._stages for event in (stage.filled, stage.emptied)]
        device.destroy([self._first, self._second], events)
        device.free_host(self._broken)
        if self._memory:
            device.free(self._memory)


class Outbound(_Side[Tag]):
    """From the cache to addresses. `filled` is told each piece's tag when its bytes are there, in order."""

    def __init__(
        self, blocks: PagedBlocks, most: int, filled: Callable[[Tag], None], *, on_gpu: bool = False
    ) -> None:
        super().__init__(blocks, most, on_gpu)
        self._gather = Moves(blocks, blocks.gather)
        self._filled = filled
        self._seen = 0  # the last mark that the stream has waited for

    def fill(self, address: int, chosen: Sequence[int], tag: Tag) -> None:
        """These blocks, behind what they were marked with. Returns at once, or when one is done."""
        device, (buffer, filled, emptied, broken) = self._device, self._begin(chosen)
        mark, computed = self._blocks.marked(chosen)
        if mark > self._seen:
            device.wait(self._first, computed)
            self._seen = mark
        if self._on_gpu:
            self._gather(chosen, address, self._first)
            device.record(emptied, self._first)
        else:
            device.wait(self._first, emptied)
            self._gather(chosen, buffer, self._first)
            device.record(filled, self._first)
            device.wait(self._second, filled)
            device.copy(address, buffer, self._blocks.piece_bytes(len(chosen)), self._second)
            device.record(emptied, self._second)
        self._pending.append((tag, chosen, emptied, broken))

    def _tell(self, tag: Tag, chosen: Sequence[int], broken: int) -> None:
        self._filled(tag)


class Inbound(_Side[Tag]):
    """From addresses into the cache. `landed` is told each piece's tag, and which of its blocks must not be used."""

    def __init__(
        self,
        blocks: PagedBlocks,
        most: int,
        landed: Callable[[Tag, list[int]], None],
        *,
        on_gpu: bool = False,
    ) -> None:
        super().__init__(blocks, most, on_gpu)
        self._scatter = Moves(blocks, blocks.scatter)
        self._landed = landed

    def take(self, address: int, chosen: Sequence[int], tag: Tag) -> None:
        """A piece for these blocks. Its memory is free when it is told. Returns at once, or when one is done."""
        device, (buffer, filled, emptied, broken) = self._device, self._begin(chosen)
        ctypes.memset(broken, 0, len(chosen))
        if self._on_gpu:
            self._scatter(chosen, address, self._second, broken)
        else:
            device.wait(self._first, filled)  # what was scattered from it last
            device.copy(buffer, address, self._blocks.piece_bytes(len(chosen)), self._first)
            device.record(emptied, self._first)
            device.wait(self._second, emptied)
            self._scatter(chosen, buffer, self._second, broken)
        device.record(filled, self._second)
        self._pending.append((tag, chosen, filled, broken))

    def _tell(self, tag: Tag, chosen: Sequence[int], broken: int) -> None:
        said = ctypes.string_at(broken, len(chosen))
        self._landed(
            tag, [block for block, bad in zip(chosen, said, strict=True) if bad] if any(said) else []
        )
