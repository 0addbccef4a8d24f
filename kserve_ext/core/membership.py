"""The top-level controller's machine: who is in the cluster, under which epoch, and who has heard of it.

A function is out when its connection is lost and not back within LOST_S, or when it is silent for SILENT_S. A node
is out when a ClusterMgr function says so, or when it leaves. Time in which the controller itself did not run is
nobody's silence. Every change is a new epoch; epochs only grow, also over the controller's own death: a new one
starts above what it has stored and above what any member reports. It takes the stored members for alive until they
prove silent; one whose store is behind its members gathers them for GATHER_S before it publishes.

A Dispatch function that has left may only be paused, and use what its home gave it: the view names it for as long as
that may be, for those who weren't there to see it go. One whose store is behind says that it doesn't know who left.
So is a node named for as long as it may come back with what was being placed on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from kserve_ext.core.dispatch.facts import SEEN_TTL_S
from kserve_ext.core.dispatch.fleet import NODE_GRACE_S
from kserve_ext.core.facts import UNKNOWN, Kind, Left, Member, View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.partitions import carried, divide, owners

LOST_S = 0.3
SILENT_S = 3.0
PUSH_AGAIN_S = 0.5
GATHER_S = 1.2  # a member that looks for the controller does so at least once a second
#: For how long the view names who has left it.
NAMED_S: Final[Mapping[Kind, float]] = {"dispatch": SEEN_TTL_S, "node": NODE_GRACE_S}
DEAF_S = 0.5  # a longer gap between ticks means that this process did not run


class Push(NamedTuple):
    """Send the view to this member; its acknowledgement comes back as acked()."""

    member: Member
    view: View


@dataclass(slots=True)
class _Record:
    member: Member
    heard_at: float
    #: which connection it was last heard on; None = not since the controller's start
    connection: int | None = None
    #: since when that connection is gone
    lost_at: float | None = None
    acked_epoch: int = 0
    pushed_at: float = -1e9
    #: as the view shows it; the member itself doesn't know, and joins again without it
    draining: bool = False

    @property
    def shown(self) -> Member:
        return self.member._replace(draining=True) if self.draining else self.member


class Removed(NamedTuple):
    id: FunctionID
    reason: str


class MembershipMachine:
    """Verbs take `now` (seconds, monotonic) and return what to push."""

    def __init__(self, stored: View, now: float, *, lost: bool = False) -> None:
        """`lost`: the store has lost its content, and `stored` is only what this process still knew."""
        #: grows with every change of members, and above any epoch that a member has reported
        self.epoch = stored.epoch + 1
        self._records = {
            m.id: _Record(m._replace(draining=False), now, draining=m.draining) for m in stored.members
        }
        self._view: View | None = None
        #: Dispatch functions and nodes that aren't members any more, and when they left
        self._left = {left.id: (left, now - left.age_s) for left in stored.left}
        self._changed_at = now
        #: all and only the members that have yet to acknowledge the present epoch
        self._behind = set(self._records)
        self._partitions = owners(stored, "schedule")
        self._shares = owners(stored, "cluster_mgr")
        self._gather_by = now + GATHER_S
        #: members know epochs that our store has lost: nothing is published before _gather_by
        self._gathers = lost
        self._ticked_at = now
        #: the last removals, newest last, for status and logs
        self.removed: list[Removed] = []

    @property
    def view(self) -> View:
        if self._view is None:
            members = tuple(self._records[name].shown for name in sorted(self._records))
            made = self._changed_at
            left = tuple(left._replace(age_s=made - at) for _, (left, at) in sorted(self._left.items()))
            self._view = self._divided(View(self.epoch, members, left=left))
        return self._view

    def member(self, name: FunctionID) -> Member | None:
        """As the view shows it."""
        record = self._records.get(name)
        return record.shown if record is not None else None

    def gathering(self, now: float) -> float:
        """For how long the view isn't given to anybody yet, since members that were in it may still come."""
        return max(0.0, self._gather_by - now) if self._gathers else 0.0

    def join(self, member: Member, epoch: int, connection: int, now: float) -> list[Push]:
        """A function or node starts or comes back; `epoch` is the highest it has seen."""
        known = self._records.get(member.id)
        if known is not None and known.member.incarnation > member.incarnation:
            return []  # a late message of a predecessor
        if known is not None and known.member == member and not self._foreign(epoch, now):
            known.heard_at, known.connection, known.lost_at = now, connection, None
            return []
        if self._foreign(epoch, now):
            self._gathers = True
            self._left[UNKNOWN] = Left(UNKNOWN, 0, "", 0.0), now
        draining = known is not None and known.draining and known.member.incarnation == member.incarnation
        self._records[member.id] = _Record(member, now, connection, draining=draining)
        return self._changed(max(epoch, self.epoch) + 1, now)

    def report(self, member: FunctionID, incarnation: int, epoch: int, connection: int, now: float) -> bool:
        """The periodic report; False = not a member (any more): join again."""
        record = self._records.get(member)
        if record is None or record.member.incarnation != incarnation or self._foreign(epoch, now):
            return False
        record.heard_at, record.connection, record.lost_at = now, connection, None
        if now - record.pushed_at >= PUSH_AGAIN_S:
            self._ack(record, epoch)  # what it has, whatever became of our push or its acknowledgement
        return True

    def leave(self, member: FunctionID, incarnation: int, reason: str, now: float) -> list[Push]:
        record = self._records.get(member)
        if record is None or record.member.incarnation > incarnation:
            return []
        return self._remove([Removed(member, reason)], now)

    def drain(self, member: FunctionID, now: float) -> list[Push]:
        """It is to go: it stays a member, and by the next view nobody routes to it."""
        record = self._records.get(member)
        if record is None or record.draining:
            return []
        record.draining = True
        return self._changed(self.epoch + 1, now)

    def lost(self, member: FunctionID, connection: int, now: float) -> None:
        """A connection has ended. Only the one that the member was last heard on counts."""
        record = self._records.get(member)
        if record is not None and record.connection == connection:
            record.lost_at = now

    def unreachable(self, member: FunctionID, incarnation: int, now: float) -> None:
        """Nobody listens at the member's address. One that we have yet to hear of is lost with that."""
        record = self._records.get(member)
        if record is None or record.member.incarnation != incarnation or record.connection is not None:
            return
        if record.lost_at is None:
            record.lost_at = now

    def acked(self, member: FunctionID, epoch: int) -> None:
        record = self._records.get(member)
        if record is not None:
            self._ack(record, max(record.acked_epoch, epoch))

    def tick(self, now: float) -> list[Push]:
        """Removes who is dead, and pushes again to who has not acknowledged the view."""
        gap, self._ticked_at = now - self._ticked_at, now
        if gap > DEAF_S:
            self._forgive(gap, now)
        dead = [
            Removed(r.member.id, why)
            for r in self._records.values()
            if r.member.kind != "node" and (why := self._dead(r, now))
        ]
        if dead:
            return self._remove(dead, now)
        return [p for p in self._pushes(now) if now - self._records[p.member.id].pushed_at >= PUSH_AGAIN_S]

    def unheard(self, now: float) -> list[Push]:
        """The view, to each member that hasn't acknowledged it; empty while it is given to nobody."""
        return self._pushes(now)

    def pushed(self, member: FunctionID, now: float) -> None:
        record = self._records.get(member)
        if record is not None:
            record.pushed_at = now

    def consistent(self) -> bool:
        """Every member has acknowledged the current view."""
        return not self._behind

    # --- inside

    def _divided(self, view: View) -> View:
        """Gives each node to a Schedule and a ClusterMgr function: to who had it, where the quota allows."""
        nodes = [NodeID(m.id) for m in view.of("node")]
        self._partitions = divide(nodes, [m.id for m in view.of("schedule")], self._partitions)
        self._shares = divide(nodes, [m.id for m in view.of("cluster_mgr")], self._shares)
        return carried(view, self._partitions, self._shares)

    def _foreign(self, epoch: int, now: float) -> bool:
        """Another controller has published it: it is above ours, or as high while ours is given to nobody."""
        return epoch > self.epoch or (epoch == self.epoch and self.gathering(now) > 0.0)

    def _dead(self, record: _Record, now: float) -> str:
        if record.lost_at is not None and now - record.lost_at >= LOST_S:
            return f"its connection was lost {now - record.lost_at:.1f} s ago"
        if now - record.heard_at >= SILENT_S:
            return f"silent for {now - record.heard_at:.1f} s"
        return ""

    def _remove(self, dead: list[Removed], now: float) -> list[Push]:
        for removed in dead:
            member = self._records.pop(removed.id).member
            if member.kind in NAMED_S:
                self._left[member.id] = (
                    Left(member.id, member.incarnation, member.addr, 0.0, member.kind),
                    now,
                )
        self.removed = (self.removed + dead)[-100:]
        return self._changed(self.epoch + 1, now)

    def _ack(self, record: _Record, epoch: int) -> None:
        record.acked_epoch = epoch
        if epoch >= self.epoch:
            self._behind.discard(record.member.id)
        else:
            self._behind.add(record.member.id)

    def _changed(self, epoch: int, now: float) -> list[Push]:
        self.epoch, self._changed_at = epoch, now
        self._view = None
        self._left = {
            name: (left, at)
            for name, (left, at) in self._left.items()
            if name not in self._records and now - at < NAMED_S[left.kind]
        }
        self._behind = {name for name, record in self._records.items() if record.acked_epoch < epoch}
        return self._pushes(now)

    def _forgive(self, gap: float, now: float) -> None:
        for record in self._records.values():
            record.heard_at = min(now, record.heard_at + gap)
            if record.lost_at is not None:
                record.lost_at = min(now, record.lost_at + gap)

    def _pushes(self, now: float) -> list[Push]:
        if self.gathering(now):
            return []
        view = self.view
        return [Push(r.shown, view) for r in self._records.values() if r.acked_epoch < self.epoch]
