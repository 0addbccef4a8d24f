"""The paged KV cache of one rank on its GPU: chunks of it gathered into a buffer, and scattered from one.

Opaque blocks, as in vllm_pd/kv_memory.py: what is inside depends on the attention backend; equal layouts on both
sides are what makes them portable. Knows no slots or peers. One object may be used by several threads, each with
Moves of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_uint, c_uint64, c_void_p
from typing import Any

from kserve_ext.core.kv_chunks import Chunk
from runtimes.transport.cuda import kernels
from runtimes.transport.cuda.compiler import compile_for
from runtimes.transport.cuda.driver import Device
from runtimes.transport.cuda.kernels import THREADS, WORD

ALIGNED = 512  # bytes: where slots begin; the kernels read and write words in pairs
_PAIR = 2 * WORD


class PagedBlocks:
    """`layers`: one contiguous tensor each on one GPU, whose first dimension counts blocks. Keeps them alive."""

    def __init__(self, layers: Sequence[Any]) -> None:
        if not layers:
            raise ValueError("layers: at least one is needed")
        first = layers[0]
        self.layers = len(layers)
        self.blocks: int = first.shape[0]
        self.block_bytes: int = first.nbytes // self.blocks
        if self.block_bytes % _PAIR:
            raise ValueError(f"layers: a block has {self.block_bytes} bytes, not a multiple of {_PAIR}")
        for number, layer in enumerate(layers):
            if layer.device.type != "cuda":
                raise ValueError(f"layers[{number}]: on {layer.device}, not on a GPU")
            if not layer.is_contiguous():
                raise ValueError(f"layers[{number}]: not contiguous: its blocks can't be moved as bytes")
            if (layer.shape[0], layer.nbytes, layer.device) != (self.blocks, first.nbytes, first.device):
                raise ValueError(f"layers[{number}]: differs from layers[0] in blocks, size or device")
        self.device = Device(first.device.index)
        self.device.enter()
        self.words = self.block_bytes // WORD
        self.segments = kernels.segments(self.words)
        self.row_bytes = (self.words + self.segments) * WORD  # in a buffer, with the checksums
        image = compile_for(kernels.SOURCE, self.device.architecture)
        self.gather, self.scatter = self.device.load(image, kernels.NAMES)
        self._layers = list(layers)
        self._bases = _addresses(layers)

    @property
    def bases(self) -> int:
        """Where the GPU finds the layers' addresses."""
        return int(self._bases.data_ptr())

    def slot_bytes(self, rows: int) -> int:
        """The size of a slot that takes so many rows."""
        return int(-(-rows * self.row_bytes // ALIGNED)) * ALIGNED

    def check(self, blocks: Sequence[int]) -> None:
        """A wrong id would be someone else's memory."""
        wrong = next((block for block in blocks if not 0 <= block < self.blocks), None)
        if wrong is not None:
            raise ValueError(f"block {wrong}: the cache has {self.blocks}")


class Moves:
    """Launches of one of the two kernels, by one thread: the arguments are kept and only what differs is set."""

    def __init__(self, blocks: PagedBlocks, function: c_void_p) -> None:
        self._device = blocks.device
        self._function = function
        self._segments = blocks.segments
        self._index, self._buffer, self._broken = c_uint64(), c_uint64(), c_uint64()
        self._row, self._rows, self._first, self._blocks = c_uint(), c_uint(), c_uint(), c_uint()
        self._fixed = c_uint64(blocks.bases), c_uint(blocks.words), c_uint(blocks.segments)
        bases, words, segments = self._fixed
        order = (
            bases, self._index, self._buffer, self._row, self._rows, self._first, self._blocks, words, segments,
            self._broken,
        )  # fmt: skip
        self._arguments = (c_void_p * len(order))(*map(ctypes.addressof, order))

    def __call__(self, chunk: Chunk, index: int, buffer: int, stream: c_void_p, broken: int = 0) -> None:
        """`index`, `buffer` and `broken` are addresses on the GPU; see kernels.py for what lies there."""
        first, end, row, rows = chunk
        self._index.value, self._buffer.value, self._broken.value = index, buffer, broken
        self._row.value, self._rows.value, self._first.value, self._blocks.value = (
            row,
            rows,
            first,
            end - first,
        )
        self._device.launch(self._function, (rows, self._segments), THREADS, self._arguments, stream)


def _addresses(layers: Sequence[Any]) -> Any:
    import torch

    return torch.tensor([layer.data_ptr() for layer in layers], dtype=torch.int64).to(layers[0].device)
