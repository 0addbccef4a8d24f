"""How the blocks of a paged KV cache lie in memory, from the addresses and strides of its layers. Pure.

vLLM lays a cache out layer by layer, or block by block with a block's layers behind each other
(kv_cache_layout.py). The second is one layer of larger blocks: what travels is the same, in fewer pieces. A block of
a layer must be one run of bytes; within it, heads lie behind each other or don't (then only whole blocks travel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Strided(NamedTuple):
    """A layer's tensor, in elements but for `address`. The first dimension counts blocks, the second KV heads."""

    address: int
    shape: Sequence[int]
    strides: Sequence[int]
    itemsize: int


class Pages(NamedTuple):
    """Block b of region r is `block_bytes` at regions[r] + b * block_bytes."""

    regions: tuple[int, ...]
    block_bytes: int
    layers: int  # of the model, whatever the number of regions
    heads: int  # that lie behind each other in a block of a region; 0 = they don't


class Scattered(ValueError):
    """The cache's blocks can't be transferred; the message names the layer and why."""


def pages(tensors: Mapping[str, Strided], blocks: int) -> Pages:
    """`blocks`: as the engine counts them, of which an attention backend may make several smaller ones."""
    layers = [(_place(name, tensors[name], blocks), tensors[name]) for name in sorted(tensors)]
    if len({(place, *tensor.shape[1:]) for place, tensor in layers}) != 1:
        raise Scattered("the layers' KV caches differ in size: this model's KV can't be transferred")
    (page, stride), first = layers[0]
    addresses = sorted(tensor.address for _, tensor in layers)
    heads = first.shape[1] if first.shape[0] == blocks and _heads_outside(first) else 0
    if stride == page:
        return Pages(tuple(tensor.address for _, tensor in layers), page, len(layers), heads)
    start = addresses[0]
    if stride == page * len(layers) and addresses == [start + page * at for at in range(len(layers))]:
        return Pages((start,), stride, len(layers), heads if len(layers) == 1 else 0)
    raise Scattered(
        f"a block of {page} bytes every {stride}: neither layers nor blocks lie behind each other"
    )


def _place(name: str, tensor: Strided, blocks: int) -> tuple[int, int]:
    """Bytes of a block, and from one to the next."""
    pieces, rest = divmod(tensor.shape[0], blocks)
    inside = math.prod(tensor.shape[1:])
    if rest or not pieces or not _dense(tensor.shape[1:], tensor.strides[1:]):
        raise Scattered(f"{name}: a block is not one run of bytes")
    if pieces > 1 and tensor.strides[0] != inside:
        raise Scattered(f"{name}: the {pieces} parts of a block don't lie behind each other")
    return pieces * inside * tensor.itemsize, pieces * tensor.strides[0] * tensor.itemsize


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie without gaps, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _heads_outside(tensor: Strided) -> bool:
    return len(tensor.shape) == 4 and (
        tensor.shape[1] == 1 or tensor.strides[1] == math.prod(tensor.shape[2:])
    )
