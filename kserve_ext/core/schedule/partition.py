"""What one Schedule function believes about the nodes of its partition.

A node's status arrives from its ClusterMgr (ModNode) and with each answer to a Start; `seq` orders them, so
a late one never replaces a newer one. Starts under way are deducted from what is free until their answer is
here, so that a burst doesn't pile onto one node. Admission stays with the node: a wrong belief costs a
refusal, which carries the true status.
"""

from __future__ import annotations

import bisect

from kserve_ext.core.facts import NodeStatus, Resources, Revision
from kserve_ext.core.ids import InstanceID, NodeID
from kserve_ext.core.schedule.filters import Candidate
from kserve_ext.core.schedule.ranking import Ranking

_NOTHING = Resources()


class Partition:
    """The nodes of one Schedule function, with deductions for starts under way."""

    def __init__(self) -> None:
        #: newest status of each node that is up
        self._status: dict[NodeID, NodeStatus] = {}
        #: when it was last told of by its ClusterMgr, which does so at every change (knowledge.py)
        self.told: dict[NodeID, float] = {}
        #: starts sent and not yet answered; every key's node was up when it was sent
        self._pending: dict[InstanceID, tuple[NodeID, Resources]] = {}
        #: their sum, by node
        self._taken: dict[NodeID, Resources] = {}
        #: admitted since the node has said what its revisions hold
        self._admitted: dict[NodeID, tuple[Revision, ...]] = {}
        #: what follows from these, kept for each node, and the nodes in order of id
        self._candidates: dict[NodeID, Candidate] = {}
        self._order: list[NodeID] = []
        #: statuses taken in so far: whether there is news
        self.learned = 0
        self.ranking = Ranking(self._candidates)
        #: nodes that have changed since all who wait were offered what there was, with what was free there then, and
        #: how many had been refused before; of these, the ones that have more now
        self._before: dict[NodeID, tuple[Resources, int]] = {}
        self._refused = 0
        self._freed: set[NodeID] = set()
        #: nodes that the view gives to this partition; None before the first view
        self._owned: set[NodeID] | None = None
        #: the largest of each resource that any node here ever had: one that is away for a moment still counts
        self._largest = Resources()

    def refresh(self, status: NodeStatus) -> bool:
        """The status in a node's answer: taken in only of nodes that are here (others answer commits, or moved)."""
        return status.node in self._status and self._take(status)

    def learn(self, status: NodeStatus, now: float = 0.0) -> bool:
        """A node of ours, from whoever tells of each of its changes; False when a newer status is known already."""
        self.told[status.node] = now
        return self._take(status)

    def _take(self, status: NodeStatus, admitted: tuple[Revision, ...] = ()) -> bool:
        known = self._status.get(status.node)
        if known is not None and (status.incarnation, status.seq) < (known.incarnation, known.seq):
            return False
        self._status[status.node] = status
        self._admitted[status.node] = admitted
        self.learned += 1
        self._changed(status.node)
        if known is None or known.capacity != status.capacity:
            self._largest = self._largest.most(status.capacity)
        return True

    def forget(self, node: NodeID) -> None:
        self._status.pop(node, None)
        self._admitted.pop(node, None)
        self.told.pop(node, None)
        self._changed(node)

    def keep_only(self, nodes: set[NodeID]) -> None:
        """A new view: drops the nodes that it has given to others."""
        self._owned = set(nodes)
        for node in [n for n in self._status if n not in nodes]:
            self.forget(node)

    def disown(self, node: NodeID) -> None:
        """Another has it from now on."""
        self.forget(node)
        if self._owned is not None:
            self._owned.discard(node)

    def sent(self, instance: InstanceID, node: NodeID, needs: Resources) -> None:
        self.answered(instance)
        self._pending[instance] = (node, needs)
        taken = self._taken.get(node)
        self._taken[node] = needs if taken is None else taken.plus(needs)
        self._changed(node)

    def answered(
        self, instance: InstanceID, status: NodeStatus | None = None, admitted: Revision | None = None
    ) -> bool:
        """A start under way has come to an end; `status`: of its node, as it says. Whether that is news.

        `admitted`: this one was, and the status leaves out what the node's revisions hold.
        """
        node = self._settle(instance)
        if admitted is not None and status is not None:
            fresh = self._admit(status, admitted)
        else:
            fresh = status is not None and self.refresh(status)
        if node is not None and not (fresh and status is not None and status.node == node):
            self._changed(node)
        return fresh

    def _admit(self, status: NodeStatus, revision: Revision) -> bool:
        """Takes in a status without holdings. One that is late says nothing new: the newer one counts it."""
        node = status.node
        known = self._status.get(node)
        if known is None or (status.incarnation, status.seq) < (known.incarnation, known.seq):
            return False
        since = self._admitted.get(node, ())
        return self._take(
            status._replace(holdings=known.holdings) if known.holdings else status, (*since, revision)
        )

    def _settle(self, instance: InstanceID) -> NodeID | None:
        """Deducts it no longer; the node it was sent to."""
        sent = self._pending.pop(instance, None)
        if sent is not None:
            node, needs = sent
            left = self._taken[node].minus(needs)
            if any(left):
                self._taken[node] = left
            else:
                del self._taken[node]
        return sent[0] if sent is not None else None

    def starts(self, node: NodeID) -> tuple[tuple[InstanceID, Resources], ...]:
        """Those under way there, with what they need."""
        if node not in self._taken:
            return ()
        return tuple((instance, needs) for instance, (where, needs) in self._pending.items() if where == node)

    def status(self, node: NodeID) -> NodeStatus | None:
        return self._status.get(node)

    def candidate(self, node: NodeID) -> Candidate | None:
        return self._candidates.get(node)

    def candidates(self) -> list[Candidate]:
        """All nodes, in order of id, with what is free after the starts under way."""
        return [self._candidates[node] for node in self._order]

    def capacity(self) -> Resources | None:
        """What no node here has ever exceeded; None while a node of ours has yet to be heard of."""
        if self._owned is None or self._owned - self._status.keys():
            return None
        return self._largest

    @property
    def freed(self) -> bool:
        """Some node has more room than one of those who wait was offered last: they come first there."""
        return bool(self._freed)

    def given(self) -> None:
        """What is free now was offered to those who wait."""
        self._before.clear()
        self._freed.clear()

    def refused(self) -> None:
        """Somebody waits from now on for whom what is free now was not enough."""
        self._refused += 1

    def room(self) -> tuple[Resources, Resources, int]:
        """Free in all, free on the roomiest node, number of nodes: what is gossiped to other partitions."""
        total = largest = Resources()
        candidates = [c for c in self.candidates() if c.status.accepting]
        for candidate in candidates:
            free = candidate.free.most(_NOTHING)  # where room to come is kept, there is less than nothing
            total = total.plus(free)
            largest = max(largest, free, key=lambda r: (r.gpus, r.cpu_milli, r.memory_mib))
        return total, largest, len(candidates)

    def _changed(self, node: NodeID) -> None:
        """Works out what is free on it again."""
        status, known = self._status.get(node), self._candidates.get(node)
        if status is not None:
            taken = self._taken.get(node)
            free = status.free if taken is None else status.free.minus(taken)
            self._candidates[node] = Candidate(status, free, self._admitted.get(node, ()))
            if known is None:
                bisect.insort(self._order, node)
            self._compare(node, known, free if status.accepting else _NOTHING)
        elif known is not None:
            del self._candidates[node]
            self._order.remove(node)
            self._before.pop(node, None)
            self._freed.discard(node)
        self.ranking.changed(node)

    def _compare(self, node: NodeID, known: Candidate | None, free: Resources) -> None:
        """Whether more is free there than those who wait were offered, whoever was offered least."""
        before, refused = self._before.get(node, (_NOTHING, -1))
        if refused != self._refused and node not in self._freed:
            before = known.free if known is not None and known.status.accepting else _NOTHING
            self._before[node] = before, self._refused
        if free.fits(before):
            self._freed.discard(node)
        else:
            self._freed.add(node)
