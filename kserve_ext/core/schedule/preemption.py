"""Who makes room for one that may preempt: of lower priority only, the lowest first, as few as do, the youngest.

It names revisions on nodes; which instance that is, and whether it can be spared, is for their home to say
(kserve_ext/core/dispatch/yielding.py). Nodes are compared as kube-scheduler does: by the highest priority among
the victims, then by their number, then by how young they are. Room that is already on its way (instances that
drain, victims that were asked before) is used before anybody else is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from kserve_ext.core.facts import Holding, Resources, Revision
from kserve_ext.core.ids import NodeID, RevisionKey
from kserve_ext.core.schedule.filters import Candidate, selects

#: of a revision on a node: how many will stay when those are gone that were asked to go; its status may be older
Going = Mapping[tuple[RevisionKey, NodeID], int]


class Victims(NamedTuple):
    """So many instances of one revision on one node."""

    holding: Holding
    node: NodeID
    instances: int


class Plan(NamedTuple):
    nodes: tuple[NodeID, ...]  # of each member
    victims: tuple[Victims, ...]


class Room:
    """One node: what will be free without asking anybody, and who could be asked."""

    def __init__(self, candidate: Candidate, going: Going) -> None:
        self.candidate = candidate
        status = candidate.status
        coming = status.capacity.minus(status.free)  # what is held, less what is held by those that stay
        self.holdings: dict[RevisionKey, tuple[Holding, int]] = {}
        for holding in status.holdings:
            stay = min(holding.instances, going.get((holding.revision, status.node), holding.instances))
            coming = coming.minus(_times(holding.needs, stay))
            self.holdings[holding.revision] = (holding, stay)
        for revision in candidate.admitted:  # too young to be asked to go; the next status has them
            coming = coming.minus(revision.needs)
        self.free = candidate.free.plus(coming.most(Resources()))

    def lacks(self, needs: Resources) -> float:
        """0 when it will fit; otherwise how much of what it needs is missing."""
        return sum(max(0, n - have) / n for n, have in zip(needs, self.free, strict=True) if n > 0)

    def may_take(self, revision: Revision) -> bool:
        status = self.candidate.status
        return status.accepting and selects(revision, status) and revision.needs.fits(status.capacity)

    def cheapest(
        self, needs: Resources, priority: int, spared: Collection[RevisionKey]
    ) -> list[Victims] | None:
        """The victims whose end makes `needs` fit; None when even all of them don't."""
        able = [
            (holding, left)
            for holding, left in self.holdings.values()
            if holding.priority < priority and left > 0 and holding.revision not in spared
        ]
        able.sort(key=lambda h: (h[0].priority, -h[0].newest_at, h[0].revision))
        free, taken = self.free, []
        for holding, left in able:
            while left > 0 and not needs.fits(free):
                free, left = free.plus(holding.needs), left - 1
                taken.append(holding)
        if not needs.fits(free):
            return None
        for holding in sorted(taken, key=lambda h: (-h.priority, h.newest_at, h.revision)):
            without = free.minus(holding.needs)  # the highest and oldest is let off first, if it isn't needed
            if needs.fits(without):
                free = without
                taken.remove(holding)
        node = self.candidate.status.node
        by_revision = {holding.revision: holding for holding in taken}
        return [Victims(h, node, sum(t is h for t in taken)) for h in by_revision.values()]

    def take(self, needs: Resources, victims: Sequence[Victims]) -> None:
        for holding, _, count in victims:
            self.free = self.free.plus(_times(holding.needs, count))
            of, left = self.holdings[holding.revision]
            self.holdings[holding.revision] = (of, left - count)
        self.free = self.free.minus(needs)


def rooms(candidates: Sequence[Candidate], going: Going) -> list[Room]:
    return [Room(candidate, going) for candidate in candidates]


def plan(
    members: Sequence[Revision],
    nodes: Sequence[Room],
    spared: Collection[RevisionKey] = (),
) -> Plan | None:
    """For all `members` (of one gang, or one alone), or None. `nodes` is used up. `spared`: can't be asked now."""
    chosen: list[NodeID] = []
    asked: dict[tuple[RevisionKey, NodeID], Victims] = {}
    for revision in members:
        options = []
        for room in nodes:
            if not room.may_take(revision):
                continue
            victims = room.cheapest(revision.needs, revision.priority, spared)
            if victims is not None:
                options.append((_cost(victims), room.candidate.status.node, room, victims))
        if not options:
            return None
        _, node, room, victims = min(options, key=lambda option: option[:2])
        room.take(revision.needs, victims)
        chosen.append(node)
        for holding, _, count in victims:
            before = asked.get((holding.revision, node))
            asked[holding.revision, node] = Victims(
                holding, node, count + (before.instances if before else 0)
            )
    return Plan(tuple(chosen), tuple(asked[at] for at in sorted(asked)))


def plan_each(
    members: Sequence[Revision], nodes: Sequence[Room], spared: Collection[RevisionKey] = ()
) -> Plan | None:
    """For as many of `members` as can have room made for them, each by itself; None for nobody."""
    plans = []
    for member in members:
        found = plan((member,), nodes, spared)
        if found is None:
            break
        plans.append(found)
    if not plans:
        return None
    return Plan(tuple(n for p in plans for n in p.nodes), tuple(v for p in plans for v in p.victims))


def keep(members: Sequence[Revision], nodes: Sequence[Room]) -> tuple[tuple[Revision, NodeID], ...]:
    """Where room is kept for those who have waited too long: each on the node that lacks least of what it needs.

    A member that no node here could ever take is left out.
    """
    chosen: list[tuple[Revision, NodeID]] = []
    for revision in members:
        able = [room for room in nodes if room.may_take(revision)]
        if able:
            room = min(able, key=lambda r: (r.lacks(revision.needs), r.candidate.status.node))
            room.take(revision.needs, ())
            chosen.append((revision, room.candidate.status.node))
    return tuple(chosen)


def _cost(victims: Sequence[Victims]) -> tuple[float, int, float]:
    """Lower is better: nobody; low priorities; few; young."""
    if not victims:
        return (float("-inf"), 0, 0.0)
    highest = max(v.holding.priority for v in victims)
    return (highest, sum(v.instances for v in victims), -min(v.holding.newest_at for v in victims))


def _times(needs: Resources, count: int) -> Resources:
    return Resources(*(amount * count for amount in needs))
