"""The KV cache of this engine as bytes: block by block, one buffer a layer, without copies.

A block is opaque (its inside depends on the attention backend); equal layouts on both sides (layout.py) are what
makes it portable. Where a block's layers lie behind each other, that is one buffer of larger blocks; on a GPU a block
is all its layers, wherever they lie, and only named here (transport/cuda). Never touches torch beyond reading where a
tensor lies.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kserve_ext.core.kv_pages import Strided, pages
from runtimes.transport.channel import Extent, Pages
from runtimes.transport.cuda.blocks import PagedBlocks


class KvMemory:
    """Set once, when the engine has allocated its cache."""

    def __init__(self) -> None:
        self._layers: list[memoryview] = []
        self._paged: PagedBlocks | None = None  # on a GPU
        self._extents: tuple[Extent, ...] = ()
        self._waiting: list[Callable[[Sequence[Extent]], None]] = []
        self._lock = threading.Lock()
        self.block_bytes = 0
        self.blocks = 0
        #: KV heads that lie behind each other in a block; 0 = they don't: only whole blocks can be sent.
        self.heads = 0
        #: The layers as the model computes them, where each lies by itself; (): nothing is known of that.
        self.order: tuple[int, ...] = ()
        self._turns: dict[str, int] = {}

    @property
    def layers(self) -> int:
        return len(self._layers) if self._paged is None else 1

    @property
    def on_gpu(self) -> bool:
        return self._paged is not None

    def register(self, tensors: dict[str, Any], blocks: int) -> None:
        """`tensors`: the paged cache of each layer; `blocks`: how many the engine counts in it."""
        first = next(iter(tensors.values()))
        if first.device.type == "cuda":
            self.register_paged(PagedBlocks([tensors[name] for name in sorted(tensors)], blocks))
            return
        placed = {name: _placed(name, tensor) for name, tensor in tensors.items()}
        found = pages(placed, blocks)
        owners = {placed[name].address: tensor for name, tensor in tensors.items()}
        size = found.block_bytes * blocks
        self.register_views([_bytes(owners[start], start, size) for start in found.regions], blocks)
        self.heads = found.heads
        if len(found.regions) == len(tensors):
            names = sorted(tensors)
            computed = sorted(names, key=_numbers)
            self._turns = {name: turn for turn, name in enumerate(computed)}
            self.order = tuple(names.index(name) for name in computed)

    def turn(self, name: str) -> int | None:
        """Which of the layers the model computes before this one, by their number."""
        return self._turns.get(name)

    def register_views(self, layers: list[memoryview], blocks: int) -> None:
        if len({len(layer) for layer in layers}) != 1:
            raise ValueError("the layers' KV caches differ in size: this model's KV can't be transferred")
        self.block_bytes = len(layers[0]) // blocks
        self.blocks = blocks
        self._layers = layers
        self._there(tuple(Extent(_address(layer), len(layer), owner=layer) for layer in layers))

    def register_paged(self, paged: PagedBlocks) -> None:
        """Blocks that only the GPU sees, each with all its layers."""
        self._paged = paged
        self.block_bytes, self.blocks = paged.block_bytes, paged.blocks
        self._there((Extent(0, 0, gpu=True, owner=paged),))

    def _there(self, extents: tuple[Extent, ...]) -> None:
        with self._lock:
            self._extents = extents
            waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell(extents)

    def once(self, tell: Callable[[Sequence[Extent]], None]) -> None:
        """Tells where it lies: now, or when the engine has allocated it."""
        with self._lock:
            if not self._extents:
                self._waiting.append(tell)
                return
        tell(self._extents)

    def mark(self, blocks: Sequence[int]) -> None:
        """What this thread has given to its GPU so far computes these: they are not read before."""
        if self._paged is not None and blocks:
            import torch

            self._paged.mark(blocks, torch.cuda.current_stream(self._paged.device.ordinal).cuda_stream)

    def view(self, layer: int, first: int, blocks: int) -> memoryview | Pages:
        if not (0 <= layer < self.layers and first >= 0 and first + blocks <= self.blocks):
            raise ValueError(f"no blocks {first}+{blocks} in layer {layer}")
        if self._paged is not None:
            return Pages(first, blocks, self.block_bytes)
        return self._layers[layer][first * self.block_bytes : (first + blocks) * self.block_bytes]

    def part(self, offset: int, size: int) -> KvPart:
        """Of every block `size` bytes from `offset` on."""
        return KvPart(self, offset, size)


class KvPart:
    """A range of bytes of every block of a KV cache in host memory: some of its heads."""

    on_gpu = False

    def __init__(self, memory: KvMemory, offset: int, size: int) -> None:
        if not (offset >= 0 and size > 0 and offset + size <= memory.block_bytes):
            raise ValueError(f"no {size} bytes at {offset} in a block of {memory.block_bytes}")
        if memory.on_gpu:
            raise ValueError("parts of blocks on a GPU can't be transferred: give both sides the same degree")
        self._memory = memory
        self._offset = offset
        self.block_bytes = size
        self.layers, self.order = memory.layers, memory.order

    def view(self, layer: int, first: int, blocks: int) -> memoryview:
        if blocks != 1:
            raise ValueError("parts of several blocks don't lie behind each other")
        block = self._memory.view(layer, first, 1)
        assert isinstance(block, memoryview)
        return block[self._offset : self._offset + self.block_bytes]


def _numbers(name: str) -> tuple[list[int], str]:
    """Of "model.layers.10.self_attn.attn" what it comes behind: layer 9."""
    return [int(number) for number in re.findall(r"\d+", name)], name


def _placed(name: str, tensor: Any) -> Strided:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: only KV caches in host memory can be transferred")
    return Strided(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.itemsize)


def _bytes(tensor: Any, start: int, size: int) -> memoryview:
    """`size` bytes from address `start` on, where this tensor begins."""
    import torch

    storage = tensor.untyped_storage()
    first = start - storage.data_ptr()
    every = torch.empty(0, dtype=torch.uint8).set_(storage)
    return memoryview(every.numpy())[first : first + size]


def _address(layer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(layer))
