"""The paged KV cache of one rank on its GPU: blocks of it gathered into a buffer, scattered from one, or summed.

Opaque blocks, as in vllm_pd/kv_memory.py: what is inside depends on the attention backend; equal layouts on both
sides are what makes them portable, and paging.py says where their rows lie. Knows no slots or peers. One object may
be used by several threads, each with Moves of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_uint, c_uint64, c_void_p
from typing import Any

from runtimes.transport.cuda import kernels
from runtimes.transport.cuda.compiler import compile_for
from runtimes.transport.cuda.driver import Device
from runtimes.transport.cuda.kernels import THREADS, WORD
from runtimes.transport.cuda.paging import rows

ALIGNED = 512  # bytes: where pieces begin; the kernels read and write words in pairs
_PAIR = 2 * WORD
MARKS = 16  # that are told apart: of steps whose blocks are not all sent


class PagedBlocks:
    """What an engine registers: `layers`, one tensor each on one GPU, equal in shape and strides. Keeps them alive.

    `blocks`: how many the cache has; None: as many as the first dimension says. `parts`: rows that a block has in
    all layers, each `words` long; `addresses`: where those of block 0 are.
    """

    def __init__(
        self, layers: Sequence[Any], blocks: int | None = None, device: Device | None = None
    ) -> None:
        """`device`: None = the tensors'."""
        if not layers:
            raise ValueError("layers: at least one is needed")
        first = layers[0]
        self.blocks: int = blocks or first.shape[0]
        size = first.element_size()
        found = rows(first.shape, first.stride(), size, self.blocks)
        for number, layer in enumerate(layers):
            if device is None and layer.device.type != "cuda":
                raise ValueError(f"layers[{number}]: on {layer.device}, not on a GPU")
            if layer.element_size() != size or rows(layer.shape, layer.stride(), size, self.blocks) != found:
                raise ValueError(f"layers[{number}]: differs from layers[0] in shape, strides or type")
            if layer.device != first.device:
                raise ValueError(f"layers[{number}]: on {layer.device}, layers[0] on {first.device}")
        bases = self.addresses = [layer.data_ptr() + offset for layer in layers for offset in found.offsets]
        odd = next((at for at in (found.row_bytes, found.stride, *bases) if at % _PAIR), None)
        if odd is not None:
            raise ValueError(f"layers: {odd} (rows of {found.row_bytes} bytes) is not a multiple of {_PAIR}")
        self.parts = len(bases)
        self.block_bytes = found.row_bytes * self.parts  # in all layers
        self.part_bytes, self.step = found.row_bytes, found.stride  # from block to block
        self.words, self.stride = found.row_bytes // WORD, found.stride // WORD
        self.segments = kernels.segments(self.words)
        self.row_bytes = (self.words + self.segments) * WORD  # in a buffer, with the checksums
        self.device = device or Device(first.device.index)
        self.device.enter()
        image = compile_for(kernels.SOURCE, self.device.architecture)
        self.gather, self.scatter, self.sum = self.device.load(image, kernels.NAMES)
        self._marks = [self.device.event() for _ in range(MARKS)]
        self._marked = 0
        self._mark_of: dict[int, int] = {}
        self._layers = list(layers)
        self._bases = _on_device(bases, first.device)

    @property
    def bases(self) -> int:
        """Where the GPU finds the parts' addresses."""
        return int(self._bases.data_ptr())

    def memory(self) -> list[tuple[int, int]]:
        """Address and size of what the blocks lie in: a layer's, or several layers' where their blocks are mixed."""
        parts = self.parts // len(self._layers)
        behind = (self.blocks - 1) * self.step + self.part_bytes
        layers = [self.addresses[at : at + parts] for at in range(0, self.parts, parts)]
        found: list[tuple[int, int]] = []
        for start, end in sorted((min(layer), max(layer) + behind) for layer in layers):
            if found and start < sum(found[-1]):
                found[-1] = found[-1][0], max(sum(found[-1]), end) - found[-1][0]
            else:  # neighbours may be allocations of their own, which are registered by themselves
                found.append((start, end - start))
        return found

    def mark(self, chosen: Sequence[int], stream: int = 0) -> None:
        """What was given to this stream (its handle) so far computes these blocks. By one thread."""
        self.device.enter()
        self.device.record(self._marks[(self._marked + 1) % MARKS], c_void_p(stream))
        self._marked += 1
        self._mark_of.update(dict.fromkeys(chosen, self._marked))

    def marked(self, chosen: Sequence[int]) -> tuple[int, c_void_p]:
        """Behind which mark all of these are computed (0: none), and its event: the mark's, or a later one's."""
        mark = max(self._mark_of.get(block, 0) for block in chosen)
        return mark, self._marks[mark % MARKS]

    def piece_bytes(self, count: int) -> int:
        """What so many blocks take in a buffer, with their checksums."""
        return count * self.parts * self.row_bytes

    def check(self, chosen: Sequence[int]) -> None:
        """A wrong id would be someone else's memory."""
        if not 0 < len(chosen) <= kernels.BLOCKS:
            raise ValueError(f"a piece of {len(chosen)} blocks: it has 1 to {kernels.BLOCKS}")
        if min(chosen) < 0 or max(chosen) >= self.blocks:
            wrong = next(block for block in chosen if not 0 <= block < self.blocks)
            raise ValueError(f"block {wrong}: the cache has {self.blocks}")


class Moves:
    """Launches of one of the kernels, by one thread: the arguments are kept and only what differs is set."""

    def __init__(self, blocks: PagedBlocks, function: c_void_p) -> None:
        self._device, self._function = blocks.device, function
        self._parts, self._segments = blocks.parts, blocks.segments
        self._buffer, self._count, self._seed, self._broken = c_uint64(), c_uint(), c_uint64(), c_uint64()
        self._ids = (c_uint * kernels.BLOCKS)()
        self._order = (
            c_uint64(blocks.bases), self._buffer, c_uint64(blocks.stride), c_uint(blocks.words),
            c_uint(blocks.segments), self._count, self._ids, self._seed, self._broken,
        )  # fmt: skip
        self._arguments = (c_void_p * len(self._order))(*map(ctypes.addressof, self._order))

    def __call__(
        self, chosen: Sequence[int], buffer: int, stream: c_void_p, seed: int = 0, broken: int = 0
    ) -> None:
        """`buffer` and `broken` are addresses that the GPU knows; see kernels.py for what lies there."""
        count = len(chosen)
        self._buffer.value, self._count.value = buffer, count
        self._seed.value, self._broken.value = seed, broken
        self._ids[:count] = list(chosen)
        grid = (self._parts * count, self._segments)
        self._device.launch(self._function, grid, THREADS, self._arguments, stream)


def _on_device(addresses: Sequence[int], device: Any) -> Any:
    import torch

    return torch.tensor(addresses, dtype=torch.int64).to(device)
