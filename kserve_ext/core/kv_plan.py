"""What one side of a channel sends next: transfers take turns on each rung, block ranges become few large batches.

The sender's whole policy, in one object a channel. A batch is writes of one transfer that travel together: what
there is, up to what the rung takes at once, and never below LEAST while there is more. The transfer that has the
fewest bytes left goes first, so that a short one waits for one batch of a long one; but of every SHARE bytes one
goes to the eldest that is ready. So whoever stays ready has everything handed out before SHARE times the bytes left
to it and its elders, and SHARE batches, have gone. Rungs don't wait for each other. Layers of a step that is under
way go where the whole step makes several batches, in groups that are not below LEAST. Pure; `now` in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kserve_ext.core.kv_transfer import Geometry, TransferPlan, Write

LEAST: Final = 256 << 10  # bytes: links that are fast enough to matter lose bandwidth below
MOST: Final = 1 << 20  # bytes: what a short transfer has to wait for
SHARE: Final = 8
AHEAD_FROM: Final = 2 * LEAST  # bytes of a step: of less, one batch behind it is sent as soon


class Lane(NamedTuple):
    """What a rung takes at once."""

    largest: int  # bytes of a batch; so many can be had whenever nothing is under way
    pieces: int  # writes of a batch
    best: int = MOST  # bytes of a batch, where there are so many


class Batch(NamedTuple):
    """`ending`: None = more is to come; "" = the transfer is whole with it; else why it never will be."""

    transfer: int
    rung: str
    writes: tuple[Write, ...]
    bytes: int
    ending: str | None


class Ended(NamedTuple):
    """A transfer is over, and nobody reads its blocks. `reason` is "" when all of it was sent.

    The rest tells what the link took: `took_s` from the first batch until nobody read any more, less `starved_s` with
    nothing to send; the first batch was out after `lead_s`; and `ahead` bytes of others went meanwhile.
    """

    transfer: int
    reason: str
    took_s: float
    lead_s: float
    starved_s: float
    ahead: int


class _Transfer:
    __slots__ = (
        "ahead",
        "began",
        "block",
        "ending",
        "idle",
        "lead_s",
        "least",
        "plan",
        "row",
        "rung",
        "starved_s",
        "under_way",
    )

    def __init__(self, rung: str, geometry: Geometry, most: int) -> None:
        self.rung = rung
        self.row = geometry.row_bytes
        self.block = geometry.layers * geometry.row_bytes
        self.least = max(1, min(LEAST, most) // self.row)  # rows
        self.plan = TransferPlan(geometry.layers, geometry.order)
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

    @property
    def ready(self) -> int:
        """Rows that are worth a batch."""
        ready = self.plan.ready
        return ready if ready >= self.least or not self.plan.in_step else 0


class _Queue:
    """Of one rung."""

    __slots__ = ("lane", "owed", "transfers")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.transfers: dict[int, _Transfer] = {}  # the eldest first
        self.owed = 0  # bytes that others had, less SHARE - 1 times what the eldest had

    @property
    def most(self) -> int:
        """Bytes of a batch."""
        return min(self.lane.largest, self.lane.best)

    @property
    def eldests_turn(self) -> bool:
        return self.owed >= (SHARE - 1) * self.most

    def count(self, size: int, *, to_eldest: bool) -> None:
        self.owed = max(0, self.owed - (SHARE - 1) * size if to_eldest else self.owed + size)


class SendPlan:
    """All transfers to one peer, by the numbers that the receiver gave them."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._transfers: dict[int, _Transfer] = {}

    def know(self, rung: str, lane: Lane) -> None:
        """There is such a rung."""
        self._queues.setdefault(rung, _Queue(lane))

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
        made = _Transfer(rung, geometry, queue.most)
        self._transfers[number] = queue.transfers[number] = made

    def computed(self, number: int, sources: Sequence[int], count: int, final: bool, now: float) -> None:
        """The first `count` of `sources` are whole, all that ever will be if `final` (TransferPlan)."""
        transfer = self._transfers.get(number)
        if transfer is None:
            return
        transfer.plan.computed(sources, count, final)
        self._wake(transfer, now)

    def ahead(self, number: int, sources: Sequence[int], count: int, turns: int, now: float) -> bool:
        """Of a step that is under way (TransferPlan). Whether something of the transfer can go now."""
        transfer = self._transfers.get(number)
        if transfer is None or (count - transfer.plan.whole) * transfer.block < AHEAD_FROM:
            return False
        transfer.plan.ahead(sources, count, turns)
        self._wake(transfer, now)
        return transfer.ready > 0

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
        return self._over(number, transfer, None)

    # --- what goes next

    def next(self, rung: str, credit: int, now: float) -> Batch | None:
        """To be written now, and told to `sent`. None: nothing can be. `credit`: bytes that this rung takes now."""
        queue = self._queues[rung]
        self._note_idle(queue, now)
        ready = {n: t for n, t in queue.transfers.items() if t.ready or t.plan.finished}
        if not ready:
            return None
        number = self._first(queue, ready)
        transfer = ready[number]
        plan, row = transfer.plan, transfer.row
        most = queue.most
        least = min(plan.ready, transfer.least)
        if credit // row < least:
            return None  # nobody else either: whoever's turn it is would never get its credit together
        writes = tuple(plan.take(min(credit, max(row, most)) // row, queue.lane.pieces))
        size = row * sum(write.blocks for write in writes)
        queue.count(size, to_eldest=number == next(iter(ready)))
        for other in queue.transfers.values():
            if other is not transfer and other.began is not None and other.idle is None:
                other.ahead += size
        transfer.began = now if transfer.began is None else transfer.began
        transfer.under_way += 1
        if plan.finished:
            self._close(number, transfer, "short" if plan.short else "")
        return Batch(number, rung, writes, size, transfer.ending)

    def sent(self, batch: Batch, now: float, failed: str = "") -> Ended | None:
        """Nobody reads the blocks of this batch any more. Its transfer, if it is over with that."""
        number, transfer = batch.transfer, self._transfers[batch.transfer]
        transfer.under_way -= 1
        if transfer.lead_s is None and transfer.began is not None:
            transfer.lead_s = now - transfer.began
        if failed:
            transfer.ending = transfer.ending or None
            self._close(number, transfer, failed)
        return self._over(number, transfer, now)

    # --- inside

    def _first(self, queue: _Queue, ready: Mapping[int, _Transfer]) -> int:
        """Whose turn it is: what has nothing to send needs none."""
        least = min(ready, key=lambda number: ready[number].left)  # of equals the eldest
        return next(iter(ready)) if queue.eldests_turn and ready[least].left > 0 else least

    def _note_idle(self, queue: _Queue, now: float) -> None:
        for transfer in queue.transfers.values():
            waits = not transfer.ready and not transfer.plan.finished
            if transfer.began is not None and transfer.idle is None and waits:
                transfer.idle = now

    def _wake(self, transfer: _Transfer, now: float) -> None:
        if transfer.idle is not None and (transfer.ready or transfer.plan.finished):
            transfer.starved_s += now - transfer.idle
            transfer.idle = None

    def _close(self, number: int, transfer: _Transfer, reason: str) -> None:
        """Nothing more of it; the first reason counts."""
        if transfer.ending is None:
            transfer.ending = reason
            self._queues[transfer.rung].transfers.pop(number, None)

    def _over(self, number: int, transfer: _Transfer, now: float | None) -> Ended | None:
        if transfer.ending is None or transfer.under_way:
            return None
        del self._transfers[number]
        began, starved_s = transfer.began, transfer.starved_s
        took_s = now - began - starved_s if now is not None and began is not None else 0.0
        return Ended(number, transfer.ending, took_s, transfer.lead_s or 0.0, starved_s, transfer.ahead)
