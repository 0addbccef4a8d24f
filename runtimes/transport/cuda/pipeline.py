"""Pieces between a GPU's paged cache and memory that travels, several in flight: gather, check and copy overlap.

Outbound: blocks are gathered into a staging buffer on one stream and copied into page-locked memory on another; into
memory of a peer's GPU they are gathered at once. Inbound: a piece is copied into a staging buffer (unless it is on
this GPU already), checked and scattered. Sums: blocks stay where they are, and only their checksums come to the host.
What is done is told in order. Each side is driven by one thread, which
never holds the interpreter while it waits for the GPU. What carries the bytes on (nothing, a network card, NVLink),
and who says where they may lie, is the caller's. Retries nothing.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
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
    broken: int  # what is said of each block, in page-locked memory


class Side(ABC, Generic[Tag]):
    """What both directions have: two streams, and staging buffers used in turn."""

    def __init__(self, blocks: PagedBlocks, most: int, size: int, said: int) -> None:
        """`most`: blocks of a piece. `size`: bytes of a buffer on the GPU. `said`: bytes that it tells of a block."""
        self._blocks = blocks
        self._most = min(most, kernels.BLOCKS)
        self._device = device = blocks.device
        device.enter()
        self._first, self._second = device.stream(), device.stream()
        self._seen = 0  # the last mark that the first stream has waited for
        self._memory = device.allocate(DEPTH * size) if size else 0
        self._broken = device.allocate_host(DEPTH * kernels.BLOCKS * said)
        self._stages = [
            _Stage(
                self._memory + number * size,
                device.event(),
                device.event(),
                self._broken + number * kernels.BLOCKS * said,
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

    def _behind(self, chosen: Sequence[int]) -> None:
        """The first stream goes on when these are computed."""
        mark, computed = self._blocks.marked(chosen)
        if mark > self._seen:
            self._device.wait(self._first, computed)
            self._seen = mark

    @abstractmethod
    def _tell(self, tag: Tag, chosen: Sequence[int], broken: int) -> None:
        """That it is done."""

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


class Outbound(Side[Tag]):
    """From the cache to addresses. `filled` is told each piece's tag when its bytes are there, in order."""

    def __init__(
        self, blocks: PagedBlocks, most: int, filled: Callable[[Tag], None], *, on_gpu: bool = False
    ) -> None:
        super().__init__(blocks, most, _staging(blocks, most, on_gpu), 1)
        self._on_gpu = on_gpu
        self._gather = Moves(blocks, blocks.gather)
        self._filled = filled

    def fill(self, address: int, chosen: Sequence[int], tag: Tag, seed: int = 0) -> None:
        """These blocks, behind what they were marked with. Returns at once, or when one is done.

        `seed`: the piece's own (kernels.py), which is to be taken under the same.
        """
        device, (buffer, filled, emptied, broken) = self._device, self._begin(chosen)
        self._behind(chosen)
        if self._on_gpu:
            self._gather(chosen, address, self._first, seed)
            device.record(emptied, self._first)
        else:
            device.wait(self._first, emptied)
            self._gather(chosen, buffer, self._first, seed)
            device.record(filled, self._first)
            device.wait(self._second, filled)
            device.copy(address, buffer, self._blocks.piece_bytes(len(chosen)), self._second)
            device.record(emptied, self._second)
        self._pending.append((tag, chosen, emptied, broken))

    def _tell(self, tag: Tag, chosen: Sequence[int], broken: int) -> None:
        self._filled(tag)


class Inbound(Side[Tag]):
    """From addresses into the cache. `landed` is told each piece's tag, and which of its blocks must not be used."""

    def __init__(
        self,
        blocks: PagedBlocks,
        most: int,
        landed: Callable[[Tag, list[int]], None],
        *,
        on_gpu: bool = False,
    ) -> None:
        """`on_gpu`: pieces lie in a GPU's memory, and need no staging."""
        super().__init__(blocks, most, _staging(blocks, most, on_gpu), 1)
        self._on_gpu = on_gpu
        self._scatter = Moves(blocks, blocks.scatter)
        self._landed = landed

    def take(self, address: int, chosen: Sequence[int], tag: Tag, seed: int = 0) -> None:
        """A piece for these blocks. Its memory is free when it is told. Returns at once, or when one is done."""
        device, (buffer, filled, emptied, broken) = self._device, self._begin(chosen)
        ctypes.memset(broken, 0, len(chosen))
        if self._on_gpu:
            self._scatter(chosen, address, self._second, seed, broken)
        else:
            device.wait(self._first, filled)  # what was scattered from it last
            device.copy(buffer, address, self._blocks.piece_bytes(len(chosen)), self._first)
            device.record(emptied, self._first)
            device.wait(self._second, emptied)
            self._scatter(chosen, buffer, self._second, seed, broken)
        device.record(filled, self._second)
        self._pending.append((tag, chosen, filled, broken))

    def _tell(self, tag: Tag, chosen: Sequence[int], broken: int) -> None:
        said = ctypes.string_at(broken, len(chosen))
        self._landed(
            tag, [block for block, bad in zip(chosen, said, strict=True) if bad] if any(said) else []
        )


class Sums(Side[Tag]):
    """Of blocks where they are. `summed` is told each piece's tag and what its blocks sum up to, in order."""

    def __init__(self, blocks: PagedBlocks, most: int, summed: Callable[[Tag, Sequence[int]], None]) -> None:
        super().__init__(blocks, most, kernels.BLOCKS * kernels.WORD, kernels.WORD)
        self._sum = Moves(blocks, blocks.sum)
        self._summed = summed

    def add(self, chosen: Sequence[int], tag: Tag, *, written: bool = False) -> None:
        """These blocks, behind what they were marked with; `written`: a network card has put them here.

        Returns at once, or when one is done.
        """
        device, (buffer, _, done, sums) = self._device, self._begin(chosen)
        if written:
            device.see_writes()
        else:
            self._behind(chosen)
        device.zero(buffer, len(chosen) * kernels.WORD, self._first)
        self._sum(chosen, buffer, self._first)
        device.copy(sums, buffer, len(chosen) * kernels.WORD, self._first)
        device.record(done, self._first)
        self._pending.append((tag, chosen, done, sums))

    def _tell(self, tag: Tag, chosen: Sequence[int], broken: int) -> None:
        self._summed(tag, (ctypes.c_uint64 * len(chosen)).from_address(broken)[:])


def _staging(blocks: PagedBlocks, most: int, on_gpu: bool) -> int:
    """Bytes of a buffer for a piece; none where it lies in a GPU's memory already."""
    return 0 if on_gpu else -(-blocks.piece_bytes(most) // ALIGNED) * ALIGNED
