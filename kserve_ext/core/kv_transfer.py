"""What is still to be sent of one transfer, and in which pieces: pairs of blocks become as few writes as they can.

A transfer has a list of target blocks (what the receiver reserved) and a growing list of source blocks (what the
sender has computed), both in the order of the prompt. Each block of each layer is written exactly once: chunk by
chunk as they are computed, layer by layer within, in the order in which the model computes its layers. So those of
its first layers can go while a step still computes the others. Neighbours on both sides are one write. Pure: knows
no bytes, peers or time, and not which transfer goes first (kv_plan.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Geometry(NamedTuple):
    """A block is `layers` pieces of `row_bytes`: its rows. One, where a block's layers lie behind each other.

    `order`: the layers as the model computes them; (): by their numbers.
    """

    layers: int
    row_bytes: int
    order: tuple[int, ...] = ()

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
        "_ahead",
        "_at",
        "_computed",
        "_end",
        "_ends",
        "_final",
        "_first",
        "_layer",
        "_layers",
        "_order",
        "_skip",
        "_sources",
        "_taken",
        "_targets",
        "_turns",
    )

    def __init__(self, layers: int, order: Sequence[int] = ()) -> None:
        self._layers = layers
        self._order = order or range(layers)
        self._sources: list[int] = []
        self._targets: list[int] | None = None  # None: not reserved yet
        self._skip = 0  # blocks at the start of the prompt that the receiver has already
        self._computed = 0  # of _sources, how many are whole
        self._ahead = 0  # likewise, in the first _turns layers
        self._turns = 0
        self._final = False
        self._taken = 0  # rows
        # The chunk that is being taken: blocks _first to _end of the prompt, next block _at of the _layer-th layer.
        self._first = self._end = self._at = self._layer = 0
        self._ends: list[int] = []  # of its runs

    def computed(self, sources: Sequence[int], count: int, final: bool) -> None:
        """The first `count` of `sources` are whole now; after `final` there will be no more.

        Source ids may differ from before (a preempted request comes back elsewhere, and is computed again): what has
        been taken stays taken, the rest comes from the new ones.
        """
        if count > len(sources):
            raise ValueError("computed: more blocks than there are sources")
        moved = not self._same(sources)
        self._lie(sources, moved)
        self._computed = count if moved else max(count, self._computed)
        self._ahead = self._turns = 0
        self._final = final or (self._final and not moved)

    def ahead(self, sources: Sequence[int], count: int, turns: int) -> None:
        """A step is under way: in the first `turns` of the layers the first `count` of `sources` are whole.

        `computed` says so of the others, or that they lie elsewhere now.
        """
        if count > len(sources):
            raise ValueError("ahead: more blocks than there are sources")
        if self._final or count <= self._computed or not self._same(sources):
            return
        self._lie(sources, False)
        self._ahead, self._turns = count, turns

    def reserved(self, skip: int, targets: Sequence[int]) -> None:
        """Where blocks skip, skip + 1, ... of the prompt shall go."""
        if self._targets is not None:
            raise ValueError("reserved: twice")
        self._skip = self._first = self._end = self._at = skip
        self._targets = list(targets)

    @property
    def whole(self) -> int:
        """How many blocks of the prompt are, in all layers."""
        return self._computed

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
    def in_step(self) -> bool:
        """More of what is ready comes soon: other layers of the same blocks."""
        return self._turns > 0

    @property
    def ready(self) -> int:
        """Of these, how many can be taken now."""
        if self._targets is None:
            return 0
        whole, ahead = self._reach(self._layers - 1), self._reach(0)
        rows, layer = 0, self._layer
        if layer < self._layers and self._first < self._end:
            turns = self._layers if whole >= self._end else self._turns if ahead >= self._end else 0
            if layer < turns:
                rows = (turns - layer) * (self._end - self._first) - (self._at - self._first)
                layer, at = turns, self._first
            else:
                at = self._at
            if layer < self._layers:  # this layer goes as far as it is computed
                return rows + max(0, min(self._reach(layer), self._end) - at)
        whole = max(whole, self._end)
        return rows + (whole - self._end) * self._layers + max(0, ahead - whole) * self._turns

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
            reach = self._reach(self._layer)
            if self._at >= reach:
                break
            run = self._ends[bisect_right(self._ends, self._at - self._first)] + self._first
            end = min(run, self._at + rows, reach)
            source, target = self._sources[self._at], self._targets[self._at - self._skip]
            taken.append(Write(self._order[self._layer], source, target, end - self._at))
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

    def _same(self, sources: Sequence[int]) -> bool:
        """Whether what is known to be whole still lies where it did, and what is being taken."""
        known = max(self._computed, min(self._end, len(self._sources), len(sources)))
        return self._sources[:known] == list(sources[:known])

    def _lie(self, sources: Sequence[int], moved: bool) -> None:
        """Where the blocks do; `moved`: also those that were known to be whole, or are being taken."""
        self._sources = list(sources)
        if self._first < self._end and (moved or self._ends[-1:] != [self._end - self._first]):
            self._ends = self._runs()

    def _reach(self, layer: int) -> int:
        """How many blocks of the prompt are whole in this layer, as far as they are to be written."""
        return min(max(self._ahead, self._computed) if layer < self._turns else self._computed, self._last)

    def _open(self) -> bool:
        """Whether there is a chunk to take from; a new one is what has been computed since the last one.

        Behind that, what is being computed.
        """
        if self._layer == self._layers or self._first == self._end:
            end = self._reach(self._layers - 1)
            end = end if end > self._end else self._reach(0)
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
