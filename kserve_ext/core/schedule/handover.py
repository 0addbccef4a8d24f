"""How nodes change hands between Schedule functions: a view says whose they are, a claim moves them, in that order.

The function that a view names claims its new nodes from whoever had them. Until it is asked, the old owner goes on
placing there, also when it drains; from its answer on it doesn't, and the answer carries what it knows: each node's
status, and the starts under way, which the new owner deducts until they are over. So a node has one placer at a time,
and is without one for the time of one message. An answer that is lost is given again, word for word.

Nobody is asked for a node whose old owner is gone; one that has not answered for PATIENCE_S is taken for gone. Such a
node is taken at once, with what the store says of it, and asked itself (Recall). Should its old owner live after all,
the node refuses it: every start carries its placer's term, the epoch under which it took the node, and a node obeys
no term older than one that it has obeyed. A claim under an older view than ours is answered with who owns the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from kserve_ext.core.facts import NodeStatus, Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule.facts import BOOKED
from kserve_ext.core.schedule.partition import Partition

CLAIM_S = 0.1  # until a claim that was not answered is made again
PATIENCE_S = 0.5
LEAVE_S = 5.0  # who owns by then what it has not claimed has it already, or is no more
OWED = "owed:"  # before the id of a start that the old owner has under way: nobody here is answered about it
OWED_S = 2.0  # a start that the old owner has under way is over by then


class Handed(NamedTuple):
    """A node, as its old owner knew it; `status` None: it has heard nothing of it yet."""

    node: NodeID
    status: NodeStatus | None
    starts: tuple[tuple[InstanceID, Resources], ...] = ()


class Moved(NamedTuple):
    """A node that isn't here. `to`: who may have it, "" = not known; `owner`: so says a newer view."""

    node: NodeID
    to: FunctionID = FunctionID("")
    owner: bool = False


class Handing(NamedTuple):
    """The answer to a claim."""

    epoch: int
    handed: tuple[Handed, ...] = ()
    moved: tuple[Moved, ...] = ()


# --- instructions


@dataclass(frozen=True, slots=True)
class Claim:
    """Ask this function for nodes; its answer comes back as handed(), or nobody() listens there."""

    to: FunctionID
    epoch: int
    nodes: tuple[NodeID, ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """Nobody hands these over: what the store has of them comes back as stored(), what they say as heard()."""

    nodes: tuple[NodeID, ...]


Instruction = Claim | Recall


@dataclass(slots=True)
class _Awaited:
    """A node of ours that others may have."""

    epoch: int
    since: float
    asked_at: float
    holders: set[FunctionID]
    #: asked, and without it
    without: set[FunctionID] = field(default_factory=set)
    status: NodeStatus | None = None
    #: a newer view gives it to another: nobody is asked until we have it
    superseded: bool = False


class _Given(NamedTuple):
    to: FunctionID
    at: float
    what: Handed


class Handover:
    """Of one Schedule function: which nodes it may place on. Verbs take `now` (seconds, monotonic)."""

    def __init__(self, me: FunctionID, partition: Partition) -> None:
        self.me, self.partition = me, partition
        self.epoch = 0
        #: the owner of each node in our view; None before the first one
        self.owners: Mapping[NodeID, FunctionID] | None = None
        #: nodes that we place on, and our term there
        self.terms: dict[NodeID, int] = {}
        self._functions: Set[FunctionID] = frozenset()
        self._awaited: dict[NodeID, _Awaited] = {}
        self._given: dict[NodeID, _Given] = {}
        #: nodes that we place on, and since when they are another's
        self._leaving: dict[NodeID, float] = {}
        #: nodes that have obeyed, or of which others have seen, a view newer than ours: anybody may have them
        self._unsure: set[NodeID] = set()
        #: starts of old owners, and until when they are deducted
        self._owed: dict[InstanceID, float] = {}

    # --- the view

    def view(
        self, epoch: int, owners: Mapping[NodeID, FunctionID], functions: Set[FunctionID], now: float
    ) -> list[Instruction]:
        """`functions`: all Schedule functions there are, those that drain as well. Without us, nothing is ours."""
        if epoch <= self.epoch:
            return []
        before, self.owners, self.epoch, self._functions = self.owners, owners, epoch, functions
        for node in [n for n in self.terms if n not in owners or self.me not in functions]:
            self._drop(node)
        self._leaving = {n: self._leaving.get(n, now) for n in self.terms if owners[n] != self.me}
        self._given = {n: given for n, given in self._given.items() if n in owners}
        self._unsure &= owners.keys()
        awaited, self._awaited = self._awaited, {}
        taken: list[NodeID] = []
        for node, owner in owners.items():
            if owner != self.me or node in self.terms:
                continue
            found = awaited.get(node)
            if found is None or found.superseded:
                found = _Awaited(epoch, now, now, self._holders(node, before))
            found.holders &= functions
            if found.holders:
                self._awaited[node] = found
            else:
                self._take(node, found.status, now)
                taken.append(node)
        self.partition.keep_only({*self.terms, *self._awaited})
        return [*self._claims(self._awaited, now), *_recalls(taken)]

    @property
    def busy(self) -> bool:
        """Something changes hands: tick() has to be called."""
        return bool(self._awaited or self._leaving or self._owed)

    def _holders(self, node: NodeID, before: Mapping[NodeID, FunctionID] | None) -> set[FunctionID]:
        """Who may have it: a process that has seen no view before must ask everybody."""
        if before is None or node in self._unsure:
            return set(self._functions) - {self.me}
        given = self._given.get(node)
        return ({given.to} if given else {before[node]} if node in before else set()) - {self.me}

    # --- claims

    def claim(self, sender: FunctionID, epoch: int, nodes: Iterable[NodeID], now: float) -> Handing:
        """Another function wants what a view of this epoch has given to it."""
        handed: list[Handed] = []
        moved: list[Moved] = []
        for node in nodes:
            owner = (self.owners or {}).get(node, FunctionID(""))
            given, awaited = self._given.get(node), self._awaited.get(node)
            if (epoch < self.epoch and owner != sender) or epoch <= self.terms.get(node, 0):
                moved.append(Moved(node, owner, owner=True))
            elif node in self.terms:
                starts = tuple(s for s in self.partition.starts(node) if not s[0].startswith(BOOKED))
                what = Handed(node, self.partition.status(node), starts)
                self._drop(node)
                self._given[node] = _Given(sender, now, what)
                handed.append(what)
            elif awaited is not None:
                awaited.superseded = awaited.superseded or epoch > awaited.epoch
                moved.append(Moved(node, min(awaited.holders, default=FunctionID(""))))
            elif given is not None and given.to == sender and now - given.at < 2 * PATIENCE_S:
                handed.append(given.what)
            elif given is not None:
                moved.append(Moved(node, given.to))
            else:
                moved.append(Moved(node))
        return Handing(self.epoch, tuple(handed), tuple(moved))

    def handed(self, sender: FunctionID, epoch: int, answer: Handing, now: float) -> list[Instruction]:
        """The answer to our claim under that epoch."""
        taken: list[NodeID] = []
        again: dict[NodeID, _Awaited] = {}
        for what in answer.handed:
            awaited = self._awaited.get(what.node)
            if awaited is not None and epoch >= awaited.epoch and not awaited.superseded:
                del self._awaited[what.node]
                self._take(what.node, awaited.status, now, what)
        for moved in answer.moved:
            awaited = self._awaited.get(moved.node)
            if awaited is None or epoch < awaited.epoch:
                continue
            if moved.owner:
                awaited.superseded = True
                self._unsure.add(moved.node)
                continue
            awaited.holders.discard(sender)
            awaited.without.add(sender)
            if moved.to in self._functions and moved.to not in awaited.without | {self.me}:
                if moved.to not in awaited.holders:
                    again[moved.node] = awaited
                awaited.holders.add(moved.to)
            if not awaited.holders and not awaited.superseded:
                del self._awaited[moved.node]
                self._take(moved.node, awaited.status, now)
                taken.append(moved.node)
        return [*self._claims(again, now), *_recalls(taken)]

    def nobody(self, claim: Claim, now: float) -> list[Instruction]:
        """Nobody listens where the claim should have gone."""
        return self.handed(claim.to, claim.epoch, Handing(0, moved=tuple(map(Moved, claim.nodes))), now)

    def tick(self, now: float) -> list[Instruction]:
        """Claims again what was not answered, takes what is not answered any more, ends what has an end."""
        for node in [n for n, since in self._leaving.items() if now - since >= LEAVE_S]:
            self._drop(node)
        for instance in [i for i, until in self._owed.items() if now >= until]:
            del self._owed[instance]
            self.partition.answered(instance)
        taken: list[NodeID] = []
        due: dict[NodeID, _Awaited] = {}
        for node, awaited in list(self._awaited.items()):
            if awaited.superseded:
                continue
            if now - awaited.since >= PATIENCE_S:
                del self._awaited[node]
                self._take(node, awaited.status, now)
                taken.append(node)
            elif now - awaited.asked_at >= CLAIM_S:
                due[node] = awaited
        return [*self._claims(due, now), *_recalls(taken)]

    # --- what is heard of nodes

    def heard(self, status: NodeStatus, now: float) -> FunctionID | None:
        """A node's status. The answer: who has it, if it isn't ours; None if it was for us."""
        node = status.node
        if node in self.terms:
            self.partition.learn(status, now)
            return None
        awaited = self._awaited.get(node)
        if awaited is not None:
            awaited.status = _newer(awaited.status, status)
            return None
        owner = (self.owners or {}).get(node)
        return owner if owner != self.me else None

    def stored(self, status: NodeStatus) -> None:
        """The store's copy, for a node of which nothing else is known: what it says of itself is still to come."""
        if status.node in self.terms and self.partition.status(status.node) is None:
            self.partition.learn(status)

    def refused(self, node: NodeID, term: int, now: float) -> list[Instruction]:
        """The node obeys a newer placer than the one that we were under this term."""
        if self.terms.get(node) != term:
            return []
        self._drop(node)
        self._unsure.add(node)
        if (self.owners or {}).get(node) != self.me or self.epoch <= term:
            return []  # the view that says more is on its way
        awaited = self._awaited[node] = _Awaited(self.epoch, now, now, self._holders(node, self.owners))
        return self._claims({node: awaited}, now)

    # --- inside

    def _claims(self, wanted: Mapping[NodeID, _Awaited], now: float) -> list[Instruction]:
        by_holder: dict[FunctionID, list[NodeID]] = {}
        for node, awaited in wanted.items():
            awaited.asked_at = now
            for holder in sorted(awaited.holders):
                by_holder.setdefault(holder, []).append(node)
        return [Claim(holder, self.epoch, tuple(nodes)) for holder, nodes in by_holder.items()]

    def _take(self, node: NodeID, status: NodeStatus | None, now: float, what: Handed | None = None) -> None:
        self.terms[node] = self.epoch
        self._given.pop(node, None)
        self._unsure.discard(node)
        if what is not None:
            status = _newer(status, what.status)
            for instance, needs in what.starts:
                owed = InstanceID(f"{OWED}{instance.removeprefix(OWED)}")
                self.partition.sent(owed, node, needs)
                self._owed[owed] = now + OWED_S
        if status is not None:
            self.partition.learn(status, now)

    def _drop(self, node: NodeID) -> None:
        """The starts that are under way there are answered to whoever asked, all the same."""
        del self.terms[node]
        self._leaving.pop(node, None)
        for instance, _ in self.partition.starts(node):
            self.partition.answered(instance)
            self._owed.pop(instance, None)
        self.partition.disown(node)


def _newer(one: NodeStatus | None, other: NodeStatus | None) -> NodeStatus | None:
    statuses = [s for s in (one, other) if s is not None]
    return max(statuses, key=lambda s: (s.incarnation, s.seq), default=None)


def _recalls(nodes: list[NodeID]) -> list[Instruction]:
    return [Recall(tuple(nodes))] if nodes else []
