"""Which KV blocks to write where and in which pieces: block ranges become coalesced writes under credits.

A transfer has a list of target blocks (what the receiver reserved) and a growing list of source blocks (what
the sender has computed); both are in the order of the prompt. Each block of each layer is written exactly once.
Neighbouring blocks become one write where both sides are contiguous. Pure: knows no bytes, peers or time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """`blocks` of them, contiguous on both sides."""

    source: int
    target: int
    blocks: int


class Write(NamedTuple):
    layer: int
    source: int
    target: int
    blocks: int


def coalesce(sources: Sequence[int], targets: Sequence[int], limit: int) -> Iterator[Span]:
    """The fewest spans of at most `limit` blocks that pair sources with targets, in order."""
    if limit < 1:
        raise ValueError("limit: at least one block")
    start = 0
    for at in range(1, len(sources) + 1):
        joined = (
            at < len(sources)
            and at - start < limit
            and sources[at] == sources[at - 1] + 1
            and targets[at] == targets[at - 1] + 1
        )
        if not joined:
            yield Span(sources[start], targets[start], at - start)
            start = at


class PushPlan:
    """The sender's plan of one transfer.

    `computed` and `reserved` may come in either order; `take` hands out what both allow, within the credit.
    """

    __slots__ = ("_computed", "_final", "_layers", "_next", "_pending", "_skip", "_sources", "_targets")

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._sources: list[int] = []
        self._targets: list[int] | None = None  # None: not reserved yet
        self._skip = 0  # blocks at the start of the prompt that the receiver has already
        self._computed = 0  # of _sources, how many are whole
        self._next = 0  # block (index in the prompt) from which nothing is planned yet
        self._final = False
        self._pending: list[Write] = []  # planned, not taken; reversed

    def computed(self, sources: Sequence[int], count: int, final: bool) -> None:
        """The first `count` of `sources` are whole now; after `final` there will be no more.

        Source ids may differ from before (a preempted request comes back elsewhere): what has been taken stays
        taken, the rest is planned from the new ones.
        """
        if count > len(sources):
            raise ValueError("computed: more blocks than there are sources")
        self._sources = list(sources)
        self._computed = max(count, self._computed)
        self._final = self._final or final

    def reserved(self, skip: int, targets: Sequence[int]) -> None:
        """Where blocks skip, skip + 1, ... of the prompt shall go."""
        if self._targets is not None:
            raise ValueError("reserved: twice")
        self._skip = self._next = skip
        self._targets = list(targets)

    @property
    def blocks(self) -> int:
        """How many blocks are to be written in all; 0 while that isn't known."""
        return len(self._targets or ())

    @property
    def finished(self) -> bool:
        """Everything that will ever be written has been taken."""
        if self._targets is None or not self._final:
            return False
        return not self._pending and self._next >= min(self._computed, self._skip + len(self._targets))

    @property
    def short(self) -> bool:
        """The sender computed fewer blocks than the receiver reserved: the transfer can't be whole."""
        return self._final and self._targets is not None and self._computed < self._skip + len(self._targets)

    def take(self, credit: int, limit: int) -> list[Write]:
        """Writes of together at most `credit` blocks (of one layer each), each of at most `limit` blocks."""
        if not self._pending:
            self._plan(limit)
        taken: list[Write] = []
        while self._pending and self._pending[-1].blocks <= credit:
            write = self._pending.pop()
            credit -= write.blocks
            taken.append(write)
        if not taken and self._pending and credit > 0:  # a piece of a write that is larger than the credit
            first = self._pending.pop()
            rest = first.blocks - credit
            self._pending.append(Write(first.layer, first.source + credit, first.target + credit, rest))
            taken.append(first._replace(blocks=credit))
        return taken

    def _plan(self, limit: int) -> None:
        if self._targets is None:
            return
        end = min(self._computed, self._skip + len(self._targets))
        if self._next >= end:
            return
        sources = self._sources[self._next : end]
        targets = self._targets[self._next - self._skip : end - self._skip]
        spans = list(coalesce(sources, targets, limit))
        writes = [Write(layer, *span) for layer in range(self._layers) for span in spans]
        self._pending = writes[::-1]
        self._next = end


class LandingPlan:
    """The receiver's account of one transfer: which blocks are whole, and which never came or came broken."""

    __slots__ = ("_bad", "_layers", "_left", "_targets", "_total")

    def __init__(self, layers: int, targets: Sequence[int]) -> None:
        self._layers = layers
        self._targets = tuple(targets)
        self._left: dict[int, set[int]] = {block: set(range(layers)) for block in targets}
        self._bad: set[int] = set()
        self._total = len(targets)

    def expects(self, layer: int, target: int, count: int) -> bool:
        """Whether exactly these blocks of this layer are still to come: anything else must not be written."""
        left = self._left
        return count > 0 and all(
            block in left and layer in left[block] for block in range(target, target + count)
        )

    def landed(self, layer: int, target: int, count: int, bad: Sequence[int] = ()) -> None:
        for block in range(target, target + count):
            self._left[block].discard(layer)
        self._bad.update(bad)

    @property
    def whole(self) -> bool:
        return not self._bad and not any(self._left.values())

    def broken_blocks(self) -> set[int]:
        """Blocks that must not be used."""
        return self._bad | {block for block, layers in self._left.items() if layers}
