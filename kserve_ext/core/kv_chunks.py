"""How the blocks of a transfer are packed into slots of a fixed size: layer by layer, in the order of the prompt.

A slot is memory that both sides can reach (pinned host memory, a registered buffer, memory of the peer's GPU). A
row is one block of one layer; a chunk is a run of rows that fills one slot, so that a slot travels as one large
write however scattered its blocks lie, and four numbers say what is in it. Pure: knows no bytes, devices or time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Chunk(NamedTuple):
    """`rows` rows from number `row` on, of the blocks `first` to `end` (exclusive) of a transfer, layer by layer.

    Row r is block first + r % (end - first), in layer r // (end - first).
    """

    first: int
    end: int
    row: int
    rows: int


def fits(chunk: Chunk, layers: int, blocks: int, rows: int) -> bool:
    """Whether it lies within a transfer of so many blocks, and in a slot of so many rows: it may be a peer's word."""
    first, end, row, count = chunk
    within = 0 <= first < end <= blocks and row >= 0 and row + count <= layers * (end - first)
    return within and 0 < count <= rows


def chunks(layers: int, first: int, end: int, rows: int) -> Iterator[Chunk]:
    """Blocks `first` to `end` (exclusive) of every layer, each exactly once, at most `rows` of them in a chunk.

    All chunks but the last are full. Raises ValueError when nothing fits into a slot.
    """
    if rows < 1:
        raise ValueError("rows: a slot has no room for a block; make slots larger")
    total = layers * (end - first)
    for row in range(0, total, rows):
        yield Chunk(first, end, row, min(rows, total - row))
