"""What one side of a channel sends next: transfers take turns on each rung, block ranges become few large batches.

The sender's whole policy, in one object a channel. A batch is writes of one transfer that travel together: what
there is, up to what the rung takes at once, and never below LEAST while there is more. The transfer that has the
fewest bytes left goes first, so that a short one waits for one batch of a long one; but of every SHARE bytes one
goes to the eldest that is ready. So whoever stays ready has everything handed out before SHARE times the bytes left
to it and its elders, and SHARE batches, have gone. Rungs don't wait for each other. Pure; `now` in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from kserve_ext.core.kv_transfer import Geometry, TransferPlan, Write

LEAST: Final = 256 << 10  # bytes: links that are fast enough to matter lose bandwidth below
MOST: Final = 1 << 20  # bytes: what a short transfer has to wait for
SHARE: Final = 8


class Lane(NamedTuple):
    """What a rung takes at once."""

    largest: int  # bytes of a batch; so many can be had whenever nothing is under way
    pieces: int  # writes of a batch


class Batch(NamedTuple):
    """`ending`: None = more is to come; "" = the transfer is whole with it; else why it never will be."""

    transfer: int
    rung: str
    writes: tuple[Write, ...]
    bytes: int
    ending: str | None


class Ended(NamedTuple):
    """A transfer is over, and nobody reads its blocks. `reason` is "" when all of it was sent.

    The rest tells what the link took, with the receiver's time from the first frame to the last: `lead_s` went by
    until the first batch was out, in `starved_s` there was nothing to send, `ahead` bytes of others went in between.
    """

    transfer: int
    reason: str
    lead_s: float
    starved_s: float
    ahead: int


class _Transfer:
    __slots__ = (
        "ahead",
        "began",
        "ending",
        "idle",
        "lead_s",
        "plan",
        "row",
        "rung",
        "starved_s",
        "under_way",
    )

    def __init__(self, rung: str, geometry: Geometry) -> None:
        self.rung = rung
        self.row = geometry.row_bytes
        self.plan = TransferPlan(geometry.layers)
        self.under_way = 0  # batches
        self.ending: str | None = None  # nothing more is handed out
        self.began: float | None = None  # when its first batch was handed out
        self.idle: float | None = None  # since when it waits for the sender to compute
        self.lead_s: float | None = None
        self.starved_s = 0.0
        self.ahead = 0

    @property
    def left(self) -> int:
        return self.plan.left * self.row


class _Queue:
    """Of one rung."""

    __slots__ = ("lane", "owed", "transfers")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.transfers: dict[int, _Transfer] = {}  # the eldest first
        self.owed = 0  # bytes that others had, less SHARE - 1 times what the eldest had


class SendPlan:
    """All transfers to one peer, by the numbers that the receiver gave them."""

    def __init__(self, lanes: Mapping[str, Lane]) -> None:
        self._queues = {rung: _Queue(lane) for rung, lane in lanes.items()}
        self._transfers: dict[int, _Transfer] = {}
        self._turn = 0  # whose rung is looked at first

    @property
    def transfers(self) -> list[int]:
        """Those that are not over, the eldest first."""
        return list(self._transfers)

    # --- what is known of a transfer; once it is over, nothing happens

    def open(self, number: int, rung: str, geometry: Geometry) -> None:
        """Raises ValueError when it can't be carried out; the message says why."""
        queue = self._queues.get(rung)
        if number in self._transfers:
            raise ValueError(f"transfer {number} is open already")
        if queue is None:
            raise ValueError(f"no rung {rung} here; there is {', '.join(self._queues) or 'none'}")
        if geometry.row_bytes > queue.lane.largest:
            raise ValueError(
                f"{rung} takes {queue.lane.largest} bytes at once, a block has {geometry.row_bytes}"
            )
        self._transfers[number] = queue.transfers[number] = _Transfer(rung, geometry)

    def computed(self, number: int, sources: Sequence[int], count: int, final: bool, now: float) -> None:
        """The first `count` of `sources` are whole, all that ever will be if `final` (TransferPlan)."""
        transfer = self._transfers.get(number)
        if transfer is None:
            return
        transfer.plan.computed(sources, count, final)
        if transfer.idle is not None and (transfer.plan.ready or transfer.plan.finished):
            transfer.starved_s += now - transfer.idle
            transfer.idle = None

    def reserved(self, number: int, skip: int, targets: Sequence[int]) -> None:
        """Where blocks skip, skip + 1, ... of the prompt shall go. A second reservation changes nothing."""
        transfer = self._transfers.get(number)
        if transfer is not None and not transfer.plan.known:
            transfer.plan.reserved(skip, targets)

    def cancel(self, number: int, reason: str) -> Ended | None:
        """Nothing of it is handed out any more. None: `sent` will say that it is over, or did so already."""
        transfer = self._transfers.get(number)
        if transfer is None:
            return None
        self._close(number, transfer, reason)
        return self._over(number, transfer)

    # --- what goes next

    def next(self, credits: Mapping[str, int], now: float) -> Batch | None:
        """To be written now, and told to `sent`. None: nothing can be. `credits`: bytes that each rung takes now."""
        queues = list(self._queues.items())
        for offset in range(len(queues)):
            turn = (self._turn + offset) % len(queues)
            rung, queue = queues[turn]
            batch = self._from(rung, queue, credits.get(rung, 0), now)
            if batch is not None:
                self._turn = turn + 1
                return batch
        return None

    def sent(self, batch: Batch, now: float, failed: str = "") -> Ended | None:
        """Nobody reads the blocks of this batch any more. Its transfer, if it is over with that."""
        number, transfer = batch.transfer, self._transfers[batch.transfer]
        transfer.under_way -= 1
        if transfer.lead_s is None and transfer.began is not None:
            transfer.lead_s = now - transfer.began
        if failed:
            transfer.ending = transfer.ending or None
            self._close(number, transfer, failed)
        if transfer.ending is None and not transfer.under_way and not transfer.plan.ready:
            transfer.idle = now
        return self._over(number, transfer)

    # --- inside

    def _from(self, rung: str, queue: _Queue, credit: int, now: float) -> Batch | None:
        ready = {n: t for n, t in queue.transfers.items() if t.plan.ready or t.plan.finished}
        if not ready:
            return None
        eldest = next(iter(ready))
        number = min(ready, key=lambda n: ready[n].left)  # of equals the eldest
        most = min(queue.lane.largest, MOST)
        if ready[number].left > 0 and queue.owed >= (SHARE - 1) * most:
            number = eldest
        transfer = ready[number]
        plan, row = transfer.plan, transfer.row
        least = min(plan.ready, max(1, min(LEAST, most) // row))
        if credit // row < least:
            return None  # nobody else either: whoever's turn it is would never get its credit together
        writes = tuple(plan.take(min(credit, max(row, most)) // row, queue.lane.pieces))
        size = row * sum(write.blocks for write in writes)
        owed = -(SHARE - 1) * size if number == eldest else size
        queue.owed = max(0, queue.owed + owed)
        for other in queue.transfers.values():
            if other is not transfer and other.began is not None and other.idle is None:
                other.ahead += size
        transfer.began = now if transfer.began is None else transfer.began
        transfer.under_way += 1
        if plan.finished:
            self._close(number, transfer, "short" if plan.short else "")
        return Batch(number, rung, writes, size, transfer.ending)

    def _close(self, number: int, transfer: _Transfer, reason: str) -> None:
        """Nothing more of it; the first reason counts."""
        if transfer.ending is None:
            transfer.ending = reason
            self._queues[transfer.rung].transfers.pop(number, None)

    def _over(self, number: int, transfer: _Transfer) -> Ended | None:
        if transfer.ending is None or transfer.under_way:
            return None
        del self._transfers[number]
        lead_s = transfer.lead_s or 0.0
        return Ended(number, transfer.ending, lead_s, transfer.starved_s, transfer.ahead)


class Span(NamedTuple):
    """`blocks` of them, contiguous on both sides."""

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
