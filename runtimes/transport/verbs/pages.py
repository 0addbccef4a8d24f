"""A GPU's paged cache as work requests: where its parts lie in registered memory, and what one WRITE takes of blocks.

Parts that are neighbours on both sides are one span, and so are neighbouring blocks where a span is all there is of
them (all layers of a block behind each other, or one part of all blocks). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from runtimes.transport.verbs.work import Piece, joined

if TYPE_CHECKING:
    from runtimes.transport.verbs.memory import Region


class Sheet(msgspec.Struct, frozen=True, array_like=True):
    """What a block is made of, as one side tells the other. Part p of block b lies b * stride behind block 0's."""

    parts: list[tuple[int, int]]  # of block 0: the number of its memory, and how far behind that one's start
    part_bytes: int
    stride: int
    blocks: int

    @property
    def block_bytes(self) -> int:
        return len(self.parts) * self.part_bytes


class Lying(msgspec.Struct, frozen=True, array_like=True):
    """Registered memory, as the other side writes to it."""

    address: int
    key: int
    size: int


def sheet(memory: Sequence[tuple[int, int]], addresses: Sequence[int], rest: tuple[int, int, int]) -> Sheet:
    """`memory`: address and size of each. `rest`: bytes of a part, from block to block, how many blocks."""
    parts = []
    for address in addresses:
        found = next(n for n, (start, size) in enumerate(memory) if start <= address < start + size)
        parts.append((found, address - memory[found][0]))
    return Sheet(parts, *rest)


def differs(mine: Sheet | None, theirs: Sheet | None, lying: Sequence[Lying]) -> str:
    """Why blocks of one are none of the other, or are not all within the memory that was told; "": they are."""
    if mine is None or theirs is None:
        return "" if mine is theirs else "one side's cache is on a GPU, the other's is not"
    ours, other = ((len(each.parts), each.part_bytes) for each in (mine, theirs))
    if ours != other:
        return f"a block has {ours[0]} parts of {ours[1]} bytes here, {other[0]} of {other[1]} there"
    behind = (theirs.blocks - 1) * theirs.stride + theirs.part_bytes
    if (
        theirs.blocks < 1
        or theirs.stride < 0
        or not all(0 <= n < len(lying) and 0 <= at <= lying[n].size - behind for n, at in theirs.parts)
    ):
        return "the peer's blocks lie beyond its memory"
    return ""


def spans(mine: Sheet, regions: Sequence[Region], theirs: Sheet, lying: Sequence[Lying]) -> list[Piece]:
    """Block 0 of one for block 0 of the other, in as few pieces as possible."""
    pieces = [
        regions[n].piece(at, mine.part_bytes, lying[m].address + there, lying[m].key)
        for (n, at), (m, there) in zip(mine.parts, theirs.parts, strict=True)
    ]
    return joined(sorted(pieces, key=lambda piece: (piece.lkey, piece.local)))


def requests(
    block: Sequence[Piece], mine: int, theirs: int, runs: Iterable[tuple[int, int, int]]
) -> list[Piece]:
    """`block`: its spans. `mine`, `theirs`: bytes from block to block. Runs: first here, first there, how many."""
    out: list[Piece] = []
    for source, target, count in runs:
        for span in block:
            local, remote = span.local + source * mine, span.remote + target * theirs
            if span.size == mine == theirs:
                out.append(span._replace(local=local, remote=remote, size=count * span.size))
            else:
                out += [
                    span._replace(local=local + n * mine, remote=remote + n * theirs) for n in range(count)
                ]
    return out
