"""Pieces that go from the sender's pages into the receiver's: nobody copies, both sides sum them up where they lie.

The sender's GPU sums blocks that are computed, then the way's device writes them; their frame brings what each must
sum up to, and behind it the receiver's GPU sums what has been written. A block that differs is broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runtimes.transport.channel import PAGE, PAGES, RUNG_NAMES, Frame, Way
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.halves import Giving, Lose, Piece, Runs, Taking
from runtimes.transport.cuda.pipeline import Sums

_Written = tuple[Frame, Sequence[int], Sequence[int]]  # with the blocks here, and those over there


class ToPages(Giving):
    def __init__(self, blocks: PagedBlocks, way: Way, most: int) -> None:
        self._blocks, self._way = blocks, way
        self._sums: Sums[_Written] = Sums(blocks, most, self._summed)
        super().__init__(self._sums, most)

    def _give(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        number, size = RUNG_NAMES.index(self._way.rung), len(targets) * self._blocks.block_bytes
        frame = Frame(PAGES, number, 0, self._transfer, len(targets), targets[0], size)
        self._guarded(lambda: self._sums.add(sources, (frame, sources, targets)))

    def _summed(self, tag: _Written, sums: Sequence[int]) -> None:
        frame, sources, targets = tag
        places = b"".join(PAGE.pack(target, told) for target, told in zip(targets, sums, strict=True))
        self._way.write_pages(frame, places, runs(zip(sources, targets, strict=True)))


class FromPages(Taking):
    kind = PAGES

    def __init__(self, blocks: PagedBlocks, way: Way, most: int, lose: Lose) -> None:
        self._sums: Sums[Piece] = Sums(blocks, most, self._summed)
        super().__init__(self._sums, blocks, most, way.rung, lose)

    def _size(self, count: int) -> int:
        return count * self._blocks.block_bytes

    def _read(self, frame: Frame, body: bytes) -> tuple[Sequence[int], Sequence[int]]:
        targets, sums = zip(*PAGE.iter_unpack(body), strict=True)
        return targets, sums

    def _arrive(self, lane: int, frame: Frame, body: bytes) -> int:
        return 0  # they came before it, and what they sum up to is in it

    def _begin(self, piece: Piece) -> None:
        self._sums.add(piece.targets, piece, written=True)

    def _summed(self, piece: Piece, sums: Sequence[int]) -> None:
        all_of_it = zip(piece.targets, piece.sums, sums, strict=True)
        self._told(piece, [target for target, told, found in all_of_it if told != found])


def runs(pairs: Iterable[tuple[int, int]]) -> Runs:
    """Neighbours on both sides together."""
    found: list[tuple[int, int, int]] = []
    for source, target in pairs:
        if found:
            first, there, count = found[-1]
            if (source, target) == (first + count, there + count):
                found[-1] = first, there, count + 1
                continue
        found.append((source, target, 1))
    return found
