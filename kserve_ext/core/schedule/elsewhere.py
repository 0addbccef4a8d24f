"""What found no room in a partition: which other one is asked next, and whether any could ever take it.

By what the others last said of their room (rooms.py); nothing is asked here. Beyond MAX_HOPS nobody is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kserve_ext.core import rendezvous
from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.schedule.facts import Refusal
from kserve_ext.core.schedule.op import Op
from kserve_ext.core.schedule.partition import Partition
from kserve_ext.core.schedule.rooms import Rooms

MAX_HOPS: Final = 2
SECOND_LINE_S: Final = 5.0
MOST_NAMED: Final = 3


def lender(op: Op, rooms: Rooms) -> FunctionID | None:
    """The partition to ask next for what is stuck."""
    if op.hops >= MAX_HOPS or (op.hops and op.reserve):
        return None
    needs = [op.wanted[i].needs for i in op.stuck]
    return rooms.lender(needs, op.asked) or _second_line(op, needs, rooms)


def judged(op: Op, refusal: Refusal, partition: Partition, rooms: Rooms) -> Refusal:
    """Adds why partitions that weren't asked would not take it either, and whether any ever could."""
    needs = op.wanted[refusal.instance].needs
    unasked = [
        f"partition {function}: {short} on its roomiest node"
        for function, room in sorted(rooms.known.items())
        if function not in op.asked and any(room.largest) and (short := needs.short_of(room.largest))
    ]
    reason = "; ".join([refusal.reason, *unasked[:MOST_NAMED]])
    if not _never(needs, partition, rooms):
        return refusal._replace(reason=reason)
    remedy = "no node of the cluster is large enough: lower the service's resources or add a larger node"
    return refusal._replace(reason=f"{reason}. {remedy}", never=True)


def _never(needs: Resources, partition: Partition, rooms: Rooms) -> bool:
    """No node would take it even when empty. False as long as any node has yet to be heard of."""
    own = partition.capacity()
    if own is None or not rooms.complete:
        return False
    known = [c for c in (own, *(r.capacity for r in rooms.known.values())) if c and any(c)]
    return bool(known) and not any(needs.fits(c) for c in known)


def _second_line(op: Op, needs: Sequence[Resources], rooms: Rooms) -> FunctionID | None:
    """Who has waited for long stands in line in one more partition, where room may come sooner."""
    if op.asked or op.hops or op.who.waited_s < SECOND_LINE_S:
        return None
    large = [f for f, r in rooms.known.items() if r.capacity and any(n.fits(r.capacity) for n in needs)]
    return rendezvous.owner(next(iter(op.members)), large)
