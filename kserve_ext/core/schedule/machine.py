"""The Schedule function's machine: places instances on the nodes of its partition, one or as a gang.

Each placement goes to the best node, and to the next one when that refuses; what no node here takes is passed
to a partition with much room (elsewhere.py; `hops` bounds that). A gang is reserved first, on every node it
needs, and committed only when all of it is admitted; else all of it is released, and the answer says which part
did not fit and why. A start whose answer was lost is never repeated elsewhere under the same id: the answer names
the node as `unknown`, and home counts it until that node has spoken. While its nodes are told of, it decides by
all of them; else by a probe cache, and asks nodes first where that holds too little (knowledge.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from kserve_ext.core.facts import NodeStatus, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.schedule.elsewhere import MAX_HOPS, judged, lender
from kserve_ext.core.schedule.facts import (
    NOBODY,
    Answer,
    AskRoom,
    Forward,
    Instruction,
    Place,
    Refusal,
    SendCommit,
    SendProbe,
    SendStart,
    Standing,
    TellRoom,
    Wanted,
)
from kserve_ext.core.schedule.filters import Candidate, fits, why_not
from kserve_ext.core.schedule.gangs import choose_gang
from kserve_ext.core.schedule.knowledge import MOST_ASKED, Knowledge
from kserve_ext.core.schedule.line import Line
from kserve_ext.core.schedule.op import Op
from kserve_ext.core.schedule.partition import Partition
from kserve_ext.core.schedule.probe_cache import RATES, Rates
from kserve_ext.core.schedule.repeats import Repeats
from kserve_ext.core.schedule.rooms import Gossip, Room, Rooms
from kserve_ext.core.schedule.scores import NOWHERE, near


class ScheduleMachine:
    """All placements under way in one Schedule function."""

    def __init__(
        self,
        me: FunctionID,
        incarnation: int = 0,
        weights: Mapping[str, float] | None = None,
        rates: Rates = RATES,
    ) -> None:
        """`weights` of namespaces, for their shares of a full cluster; `rates` of the probe cache."""
        self.me = me
        self.partition = Partition()
        self.line = Line(self.partition, weights)
        self.knowledge = Knowledge(self.partition, rates, me)
        self._now = 0.0
        self.rooms = Rooms(me, incarnation)
        self.repeats = Repeats()
        self.placed_total = 0
        self.refused_total = 0
        self.conflicts_total = 0
        self._ops: dict[int, Op] = {}
        self._next_op = 1

    # --- events

    def schedule(
        self,
        wanted: Sequence[Wanted],
        *,
        gang: bool = False,
        reserve: bool = False,
        hops: int = 0,
        near: Collection[NodeID] = (),
        who: Standing = NOBODY,
        now: float = 0.0,
    ) -> tuple[int, list[Instruction]]:
        """A Schedule call: the op that will be answered, and what to do first.

        `near`: nodes of the instances that these exchange KV with. `who` waits for room where there is none.
        """
        self._now = max(self._now, now)
        op_id, self._next_op = self._next_op, self._next_op + 1
        op = Op({w.instance: w.revision for w in wanted}, gang, reserve, hops, near, who)
        self._ops[op_id] = op
        out: list[Instruction] = []
        if self.repeats.begins(op) and not self._ask_first(op_id, op, out):
            self._begin(op_id, op, out)
        return op_id, self._settle(op_id, op, out)

    def probed(self, op_id: int, node: NodeID, status: NodeStatus | None, now: float) -> list[Instruction]:
        """The answer to SendProbe; None when there was none in time."""
        self._now = max(self._now, now)
        if status is not None:
            self._heard(node, status)
        op = self._ops.get(op_id)
        if op is None:
            return []
        op.open -= 1
        op.probing -= 1
        out: list[Instruction] = []
        if not op.probing:
            self._begin(op_id, op, out)
        return self._settle(op_id, op, out)

    def started(
        self,
        op_id: int,
        instance: InstanceID,
        node: NodeID,
        addr: str,
        reason: str | None,
        status: NodeStatus,
        *,
        stale: bool = False,
        admitted: Revision | None = None,
    ) -> list[Instruction]:
        """A node's answer to SendStart: admitted (`reason` None), or refused with its true status.

        `stale`: the node obeys a newer home of this revision. No other node is asked for one that has been replaced.
        `admitted`: what was, where the status leaves out what the node's revisions hold.
        """
        if self.partition.answered(instance, status, admitted):
            self.knowledge.cache.answered(node, self._now)
        op = self._ops.get(op_id)
        if op is None:
            return []
        op.open -= 1
        out: list[Instruction] = []
        if reason is None:
            op.placed[instance] = Place(instance, node, addr)
        elif stale:
            op.outdated.add(instance)
            op.refused[instance] = Refusal(instance, reason)
        else:
            self.conflicts_total += 1
            op.tried.setdefault(instance, set()).add(node)
            self._try_next(op_id, op, instance, out)
        return self._settle(op_id, op, out)

    def start_lost(
        self, op_id: int, instance: InstanceID, node: NodeID, reason: str, *, sent: bool
    ) -> list[Instruction]:
        """No answer to SendStart. Not `sent` (no connection): the next node is safe to try."""
        self.partition.answered(instance)
        self.knowledge.cache.lost(node)
        op = self._ops.get(op_id)
        if op is None:
            return []
        op.open -= 1
        out: list[Instruction] = []
        if sent:
            op.refused[instance] = Refusal(instance, f"{node} did not answer: {reason}", unknown=node)
        else:
            self.partition.forget(node)  # its ClusterMgr says when it is back
            op.tried.setdefault(instance, set()).add(node)
            self._try_next(op_id, op, instance, out)
        return self._settle(op_id, op, out)

    def committed(
        self, op_id: int, instances: Sequence[InstanceID], reason: str | None, status: NodeStatus | None
    ) -> list[Instruction]:
        """The outcome of SendCommit (without cancel); with a reason the reservation has lapsed or is lost."""
        if status is not None:
            self.partition.refresh(status)
        op = self._ops.get(op_id)
        if op is None or not op.committing:
            return []
        op.open -= 1
        if reason is not None:
            for instance in instances:
                place = op.placed.pop(instance, None)
                node = place.node if place else NodeID("")
                op.refused[instance] = Refusal(instance, f"commit failed: {reason}", unknown=node)
        return self._settle(op_id, op, [])

    def forwarded(
        self, op_id: int, function: FunctionID, placed: Sequence[Place], refused: Sequence[Refusal]
    ) -> list[Instruction]:
        """Another partition's answer (a lost one is all its instances refused as unknown by the shell)."""
        op = self._ops.get(op_id)
        if op is None:
            return []
        op.open -= 1
        for place in placed:
            op.placed[place.instance] = place
        for refusal in refused:
            target = op.refused if refusal.unknown else op.stuck
            before = op.stuck.get(refusal.instance)
            reason = f"{before.reason}; {refusal.reason}" if before else refusal.reason
            target[refusal.instance] = Refusal(refusal.instance, reason, refusal.unknown)
            if refusal.unknown:
                op.stuck.pop(refusal.instance, None)
        for place in placed:
            op.stuck.pop(place.instance, None)
        return self._settle(op_id, op, [])

    def tick(self, now: float) -> list[TellRoom | AskRoom]:
        """Room to those who wait: soon after nodes have changed, and some times a second while anybody waits."""
        self._now = max(self._now, now)
        return self.line.give(self._now)

    def view(self, owned: set[NodeID], functions: set[FunctionID]) -> None:
        """A new view: the nodes that are ours, and the Schedule functions that there are."""
        self.partition.keep_only(owned)
        self.rooms.view(functions)

    def room(self) -> Room:
        """How much there is here: what goes with the answer to a borrower."""
        self.rooms.describe(*self.partition.room(), self.partition.capacity(), exactly=True)
        return self.rooms.own

    def gossip(self) -> list[Gossip]:
        """Once a period: whom to tell how much room there is where."""
        self.rooms.describe(*self.partition.room(), self.partition.capacity())
        return self.rooms.round()

    @property
    def under_way(self) -> int:
        return len(self._ops)

    # --- inside

    def _ask_first(self, op_id: int, op: Op, out: list[Instruction]) -> bool:
        """Nodes of which too little is known are asked; False: there is nothing to wait for."""
        if self.knowledge.all_told(self._now) or not op.wanted:
            return False
        hardest = max(op.wanted.values(), key=lambda r: r.needs)
        rooms = self.rooms.known.values() if op.hops < MAX_HOPS else ()
        elsewhere = any(hardest.needs.fits(room.largest) for room in rooms)
        source = self.knowledge.source(hardest, elsewhere, self._now)
        op.pooled, op.elsewhere = True, source.kind == "elsewhere"
        if source.kind == "ask":
            self._probe(op_id, op, max(source.ask, 2 * len(op.wanted) if op.gang else 0), out)
        return op.probing > 0

    def _probe(self, op_id: int, op: Op, count: int, out: list[Instruction]) -> None:
        for node in self.knowledge.ask(count, op.probed, self._now):
            status = self.partition.status(node)
            assert status is not None
            op.probed.add(node)
            op.probing += 1
            op.open += 1
            out.append(SendProbe(op_id, node, status.addr))

    def _begin(self, op_id: int, op: Op, out: list[Instruction]) -> bool:
        """Places what is not placed yet, first of all where room was kept for it; whether any start is under way."""
        self._in_turn(op)
        told = self.line.comes(list(op.members)) if self.line.waiters else {}
        begun = self._take_bookings(op_id, op, told, out) if told else set()
        if op.gang and not op.placed and not begun:
            candidates = self.knowledge.pool(self._now) if op.pooled else self.partition.candidates()
            nodes = choose_gang(list(op.wanted.values()), candidates)
            op.plan = dict(zip(op.wanted, nodes, strict=True)) if nodes else {}
        for instance in op.wanted:
            if instance not in op.placed and instance not in op.refused and instance not in begun:
                op.stuck.pop(instance, None)
                self._try_next(op_id, op, instance, out)
        if self.line.waiters:
            self.line.tried(op.members if out else ())
        return op.open > 0

    def _in_turn(self, op: Op) -> None:
        """Room that has come since the line last gave any is given before this call may take it."""
        if not self.line.waiters:
            return
        missing = {
            key: [op.wanted[i] for i in members if i not in op.placed and i not in op.refused]
            for key, members in op.members.items()
        }
        missing = {key: revisions for key, revisions in missing.items() if revisions}
        self.line.asks(missing, op.gang or op.reserve, op.who, self._now)

    def _take_bookings(
        self, op_id: int, op: Op, told: dict[RevisionKey, list[NodeID]], out: list[Instruction]
    ) -> set[InstanceID]:
        """Starts what has a booking where that is; returns these."""
        begun: set[InstanceID] = set()
        for instance, revision in op.wanted.items():
            nodes = told.get(revision.key)
            if not nodes or instance in op.placed or instance in op.refused:
                continue
            node = nodes.pop()
            candidate = self.partition.candidate(node)
            if candidate is not None and fits(revision, candidate):
                op.plan[instance] = node
                op.stuck.pop(instance, None)
                self._try_next(op_id, op, instance, out)
                begun.add(instance)
        self.line.tried(op.members if begun else ())
        return begun

    def _heard(self, node: NodeID, status: NodeStatus) -> None:
        """A node's answer, whatever was asked: what it says of itself is as good as a probe."""
        if self.partition.refresh(status):
            self.knowledge.cache.answered(node, self._now)

    def _try_next(self, op_id: int, op: Op, instance: InstanceID, out: list[Instruction]) -> None:
        revision = op.wanted[instance]
        chosen = self._best(op, instance, revision)
        if chosen is None:
            why = why_not(revision, self.partition.candidates(), f"partition {self.me}")
            op.stuck[instance] = Refusal(instance, why)
            return
        node = chosen.status.node
        self.partition.sent(instance, node, revision.needs)
        op.open += 1
        out.append(SendStart(op_id, instance, revision, node, chosen.status.addr, op.gang or op.reserve))
        if op.pooled:
            for other in self.knowledge.sent(node, self._now):
                status = self.partition.status(other)
                assert status is not None
                out.append(SendProbe(0, other, status.addr))

    def _best(self, op: Op, instance: InstanceID, revision: Revision) -> Candidate | None:
        """Where it was planned to go; else near its partners, if it has any; else the best of all."""
        tried = op.tried.get(instance, ())
        planned = op.plan.get(instance)
        if planned is not None and planned not in tried:
            candidate = self.partition.candidate(planned)
            return candidate if candidate is not None and fits(revision, candidate) else None
        nodes = {*op.near, *(p.node for p in op.placed.values())} if op.gang else op.near
        partners = near(nodes, self._statuses(nodes)) if nodes else NOWHERE
        if op.pooled:
            return self.knowledge.best(revision, tried, partners, self._now)
        return self.partition.ranking.best(revision, tried, partners)

    def _statuses(self, nodes: Iterable[NodeID]) -> list[NodeStatus]:
        return [status for node in nodes if (status := self.partition.status(node)) is not None]

    def _settle(self, op_id: int, op: Op, out: list[Instruction]) -> list[Instruction]:
        """Goes on when nothing is open: ask elsewhere, commit or release a gang, or answer."""
        if op.open:
            return out
        if op.stuck and not op.committing:
            if op.pooled and not (op.elsewhere and not op.asked):
                self._probe(op_id, op, MOST_ASKED, out)
                if op.probing:
                    return out
                # Nobody is left to ask: of those that do not answer, what was last heard is all there is.
                op.pooled = False
                if self._begin(op_id, op, out):
                    return out
            function = lender(op, self.rooms)
            if function is not None and not (op.gang and op.refused):
                op.asked.add(function)
                op.open += 1
                wanted = tuple(Wanted(i, op.wanted[i]) for i in op.stuck)
                out.append(Forward(op_id, function, wanted, op.gang or op.reserve, op.hops + 1))
                return out
            op.refused.update((i, judged(op, r, self.partition, self.rooms)) for i, r in op.stuck.items())
            op.stuck.clear()
        if op.gang and op.refused and not op.committing:
            self._release_gang(op_id, op, out)
        elif op.gang and not op.reserve and not op.committing:
            op.committing = True
            for addr, instances in self._by_node(op).items():
                op.open += 1
                out.append(SendCommit(op_id, addr, instances, cancel=False))
            if op.open:
                return out
        self._stand(op)
        del self._ops[op_id]
        self.repeats.ends(op)
        self.placed_total += len(op.placed)
        self.refused_total += len(op.refused)
        out.append(Answer(op_id, tuple(op.placed.values()), tuple(op.refused.values())))
        return out

    def _stand(self, op: Op) -> None:
        """In line stands what found no room, a gang as a whole; what was placed stands there no more.

        What an older home has asked for says nothing of the newer one's place there.
        """
        if not self.line.waiters and not op.refused:
            return
        for key, members in op.members.items():
            if not op.outdated.isdisjoint(members):
                self.line.outdated(key, op.who)
                continue
            full = [op.wanted[i] for i in members if (r := op.refused.get(i)) and not (r.unknown or r.never)]
            if full and (op.gang or op.reserve):
                full = [op.wanted[i] for i in members]
            if full:
                placed = any(i in op.placed for i in members)
                self.line.waits(key, full, op.gang or op.reserve, op.who, self._now, placed=placed)
            else:
                self.line.leaves(key)

    def _release_gang(self, op_id: int, op: Op, out: list[Instruction]) -> None:
        """Neither starts: the reserved ones are released, and say which other one did not fit."""
        culprit = max(op.refused.values(), key=lambda r: r.never)
        key = op.wanted[culprit.instance].key
        role = op.wanted[culprit.instance].role
        why = f"its gang can't be placed: {role} {key} did not fit ({culprit.reason})"
        for addr, instances in self._by_node(op).items():
            out.append(SendCommit(op_id, addr, instances, cancel=True, reason=why))
        for instance, refusal in op.refused.items():
            op.refused[instance] = refusal._replace(never=culprit.never)
        for instance in op.placed:
            op.refused[instance] = Refusal(instance, why, never=culprit.never)
        op.placed.clear()

    def _by_node(self, op: Op) -> dict[str, tuple[InstanceID, ...]]:
        nodes: dict[str, tuple[InstanceID, ...]] = {}
        for place in op.placed.values():
            nodes[place.addr] = (*nodes.get(place.addr, ()), place.instance)
        return nodes
