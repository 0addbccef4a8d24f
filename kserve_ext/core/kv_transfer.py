"""What is still to be sent of one transfer, and in which pieces: pairs of blocks become as few writes as they can.

A transfer has a list of target blocks (what the receiver reserved) and a growing list of source blocks (what the
sender has computed), both in the order of the prompt. Each block of each layer is written exactly once: chunk by
chunk as they are computed, layer by layer within. Neighbours on both sides are one write. Pure: knows no bytes,
peers or time, and not which transfer goes first (kv_plan.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Geometry(NamedTuple):
    """A block is `layers` pieces of `row_bytes`: its rows. One, where a block's layers lie behind each other."""

    layers: int
    row_bytes: int

    @classmethod
    def of(cls, layers: int, block_bytes: int, *, cross_layer: bool = False) -> Geometry:
        """`block_bytes`: of a block in one layer; `cross_layer`: blocks outside, layers inside (vLLM's BLHNC)."""
        return cls(1, layers * block_bytes) if cross_layer else cls(layers, block_bytes)


class Write(NamedTuple):
    """`blocks` of them, contiguous on both sides; `layer` is 0 where a row holds all layers."""

    layer: int
    source: int
    target: int
    blocks: int


def runs(sources: Sequence[int], targets: Sequence[int]) -> list[int]:
    """Where each run of pairs ends that are neighbours on both sides, as indices, in order."""
    return [
        at
        for at in range(1, len(sources) + 1)
        if at == len(sources) or sources[at] != sources[at - 1] + 1 or targets[at] != targets[at - 1] + 1
    ]


class TransferPlan:
    """`computed` and `reserved` may come in either order; `take` hands out what both allow."""

    __slots__ = (
        "_at",
        "_computed",
        "_end",
        "_ends",
        "_final",
        "_first",
        "_layer",
        "_layers",
        "_skip",
        "_sources",
        "_taken",
        "_targets",
    )

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._sources: list[int] = []
        self._targets: list[int] | None = None  # None: not reserved yet
        self._skip = 0  # blocks at the start of the prompt that the receiver has already
        self._computed = 0  # of _sources, how many are whole
        self._final = False
        self._taken = 0  # rows
        # The chunk that is being taken: blocks _first to _end of the prompt, next block _at of _layer.
        self._first = self._end = self._at = self._layer = 0
        self._ends: list[int] = []  # of its runs

    def computed(self, sources: Sequence[int], count: int, final: bool) -> None:
        """The first `count` of `sources` are whole now; after `final` there will be no more.

        Source ids may differ from before (a preempted request comes back elsewhere, and is computed again): what has
        been taken stays taken, the rest comes from the new ones.
        """
        if count > len(sources):
            raise ValueError("computed: more blocks than there are sources")
        moved = self._sources[: self._computed] != list(sources[: self._computed])
        self._sources = list(sources)
        self._computed = count if moved else max(count, self._computed)
        self._final = final or (self._final and not moved)
        if self._first < self._end and (moved or self._ends[-1:] != [self._end - self._first]):
            self._ends = self._runs()

    def reserved(self, skip: int, targets: Sequence[int]) -> None:
        """Where blocks skip, skip + 1, ... of the prompt shall go."""
        if self._targets is not None:
            raise ValueError("reserved: twice")
        self._skip = self._first = self._end = self._at = skip
        self._targets = list(targets)

    @property
    def known(self) -> bool:
        """Whether it has been reserved."""
        return self._targets is not None

    @property
    def blocks(self) -> int:
        """How many blocks are to be written in all; 0 while that isn't known."""
        return len(self._targets or ())

    @property
    def left(self) -> int:
        """Rows that are still to be taken, computed or not."""
        return (self._last - self._skip) * self._layers - self._taken

    @property
    def ready(self) -> int:
        """Of these, how many can be taken now."""
        whole = min(self._computed, self._last)
        if whole < self._end:  # it is computed again: this layer goes as far as that is
            return max(0, whole - self._at) if self._layer < self._layers else 0
        chunk = (self._end - self._first) * (self._layers - self._layer) - (self._at - self._first)
        return chunk + (whole - self._end) * self._layers if self._targets is not None else 0

    @property
    def finished(self) -> bool:
        """Everything that will ever be written has been taken."""
        return self._targets is not None and self._final and self.left <= 0

    @property
    def short(self) -> bool:
        """The sender computed fewer blocks than the receiver reserved: the transfer can't be whole."""
        return self._final and self._targets is not None and self._computed < self._skip + len(self._targets)

    def take(self, rows: int, pieces: int) -> list[Write]:
        """The next writes, of together at most `rows` rows, at most `pieces` of them."""
        taken: list[Write] = []
        while rows > 0 and len(taken) < pieces and self._open():
            assert self._targets is not None
            if self._at >= self._computed:
                break
            run = self._ends[bisect_right(self._ends, self._at - self._first)] + self._first
            end = min(run, self._at + rows, self._computed)
            source, target = self._sources[self._at], self._targets[self._at - self._skip]
            taken.append(Write(self._layer, source, target, end - self._at))
            rows -= end - self._at
            self._taken += end - self._at
            self._at = end
            if end == self._end:
                self._layer, self._at = self._layer + 1, self._first
        return taken

    @property
    def _last(self) -> int:
        """The block of the prompt behind the last one that will be written."""
        if self._targets is None:
            return self._skip
        end = self._skip + len(self._targets)
        return max(self._skip, min(end, self._computed)) if self._final else end

    def _open(self) -> bool:
        """Whether there is a chunk to take from; a new one is what has been computed since the last one."""
        if self._layer == self._layers or self._first == self._end:
            end = min(self._computed, self._last)
            if self._targets is None or end <= self._end:
                return False
            self._first = self._at = self._end
            self._end, self._layer = end, 0
            self._ends = self._runs()
        return True

    def _runs(self) -> list[int]:
        """Of the chunk, as far as its sources are known."""
        assert self._targets is not None
        first, end = self._first, min(self._end, len(self._sources))
        return runs(self._sources[first:end], self._targets[first - self._skip : end - self._skip])
