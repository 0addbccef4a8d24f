"""Where the blocks of a paged cache lie: equal rows of contiguous bytes, from a tensor's shape and strides. Pure.

Attention backends differ in where the blocks are counted (before or behind keys and values), in the order inside a
block, and in whether a block of all layers lies together. All that a transfer needs of it is here: how long a row
is, how many of them one block of one layer has, and how far apart they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Final, NamedTuple

MOST_ROWS: Final = 128  # of one block of one layer: beyond it a transfer would be of crumbs


class Rows(NamedTuple):
    """Row r of block b begins `offsets[r] + b * stride` bytes behind the tensor's first element."""

    offsets: tuple[int, ...]
    row_bytes: int
    stride: int


def rows(shape: Sequence[int], strides: Sequence[int], itemsize: int, blocks: int) -> Rows:
    """`strides`: in elements, as torch gives them. Raises ValueError: not a paged cache of so many blocks.

    The blocks are counted by the first or the second dimension. Where that is a multiple of `blocks`, the kernels'
    blocks are smaller than the engine's, and several neighbours are one.
    """
    axis = next((axis for axis in (0, 1) if axis < len(shape) and _counts(shape[axis], blocks)), None)
    if axis is None:
        raise ValueError(f"a shape of {tuple(shape)}: neither of its first dimensions counts {blocks} blocks")
    several = shape[axis] // blocks
    block = blocks, several * strides[axis] * itemsize
    inside = [
        (size, step * itemsize)
        for at, (size, step) in enumerate(zip(shape, strides, strict=True))
        if at != axis
    ]
    inside.append((several, strides[axis] * itemsize))
    inside = sorted((part for part in inside if part[0] != 1), key=lambda part: part[1])
    end = itemsize
    for size, step in sorted([*inside, block], key=lambda part: part[1]):
        if size == 1:
            continue
        if step < end:
            raise ValueError(
                f"a shape of {tuple(shape)} with strides {tuple(strides)}: blocks lie over each other"
            )
        end = size * step
    row = itemsize
    while inside and inside[0][1] == row:
        row *= inside.pop(0)[0]
    count = 1
    for size, _ in inside:
        count *= size
    if count > MOST_ROWS:
        raise ValueError(
            f"a block of one layer lies in {count} pieces of {row} bytes: too scattered to be moved"
        )
    steps = [range(0, size * step, step) for size, step in reversed(inside)]
    return Rows(tuple(sum(at) for at in product(*steps)), row, block[1])


def _counts(size: int, blocks: int) -> bool:
    return blocks > 0 and size >= blocks and size % blocks == 0
