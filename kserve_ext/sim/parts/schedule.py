"""One Schedule function in virtual time: the real machine, carried out as autoscaler_shim/schedule.py does it.

Without a probe cache it asks PROBES nodes of its partition before each placement, as a scheduler that keeps no answer
has to; with one it decides from what it has been told, and from kept answers where nobody tells.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, Protocol

from kserve_ext.core.dispatch.facts import Outcome, Place
from kserve_ext.core.facts import NodeStatus, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.node.facts import Order, Verdict
from kserve_ext.core.partitions import owners
from kserve_ext.core.schedule import facts as core
from kserve_ext.core.schedule.facts import NOBODY, AskRoom, Standing, TellRoom
from kserve_ext.core.schedule.handover import Claim, Handing, Handover, Recall
from kserve_ext.core.schedule.machine import ScheduleMachine
from kserve_ext.core.schedule.probe_cache import Rates
from kserve_ext.sim.parts.network import Network, Process
from kserve_ext.sim.parts.node import NodeAgent

HEARD_OF_S: Final = 0.6  # so long it is told of nodes also where nobody tells later: else it knew none to ask
PROBES: Final = 3  # per decision, as Prequal's per query
GIVE_S: Final = 0.02
GIVE_AGAIN_S: Final = 0.2
Reply = Callable[[core.Answer], None]
Told = Callable[[], None]


class Call:
    """One Schedule call: for whom, since when they wait for room, where their partners are."""

    __slots__ = ("epoch", "home", "near", "reply", "waited_s", "waiting")

    def __init__(
        self,
        home: FunctionID,
        epoch: int,
        waiting: tuple[str, ...],
        reply: Reply,
        waited_s: float = 0.0,
        near: tuple[NodeID, ...] = (),
    ) -> None:
        self.home, self.epoch, self.waiting, self.reply = home, epoch, waiting, reply
        self.waited_s, self.near = waited_s, near


class Dispatchers(Protocol):
    """How a Schedule function reaches the homes of those who wait, and of those who are to make room."""

    def room_for(self, caller: Process, function: FunctionID, told: TellRoom, gone: Told) -> None:
        """`gone` is called when that home doesn't want it any more."""

    def make_room(self, caller: Process, asked: AskRoom, made: Callable[[int], None]) -> None: ...


class Schedule:
    def __init__(
        self,
        network: Network,
        name: FunctionID,
        nodes: Mapping[NodeID, NodeAgent],
        others: Mapping[FunctionID, Schedule],
        *,
        probe_cache: bool,
        rng: random.Random,
        incarnation: int = 1,
        told: bool = True,
        homes: Dispatchers | None = None,
    ) -> None:
        self.network, self.id, self.nodes, self.others = network, name, nodes, others
        self.process: Process = network.process(name)
        rates = Rates() if probe_cache else Rates(pool=PROBES, probes=0.0, removed=0.0)
        self.machine = ScheduleMachine(name, incarnation, rates=rates)
        self.probe_cache, self._rng, self._told = probe_cache, rng, told
        self.handover = Handover(name, self.machine.partition)
        self._calls: dict[int, Call] = {}
        self._homes, self._giving = homes, False
        self._learned, self._give_at = -1, 0.0

    # --- which nodes

    def view(self, view: View) -> None:
        functions = {m.id for m in view.members if m.kind == "schedule"}
        self.machine.rooms.view({m.id for m in view.of("schedule")})
        now = self.network.clock.now
        if not now:
            functions = {self.id}  # the cluster stands for a while already: nobody is asked
        self._carry(self.handover.view(view.epoch, owners(view, "schedule"), functions, now))

    def _claim(self, i: Claim) -> None:
        other, clock = self.others[i.to], self.network.clock

        def answered(said: object) -> None:
            assert isinstance(said, Handing)
            self._carry(self.handover.handed(i.to, i.epoch, said, clock.now))

        def ask() -> Handing:
            return other.handover.claim(self.id, i.epoch, i.nodes, clock.now)

        self.network.call(self.process, other.process, "claim", ask, answered, "handed")

    def _recall(self, i: Recall) -> None:
        """The store has what nodes said; that is as good as their own answer here."""

        def answered(status: object) -> None:
            assert isinstance(status, NodeStatus)
            self.handover.heard(status, self.network.clock.now)

        for name in i.nodes:
            node, status = self.nodes[name], self.nodes[name].machine.status
            self.network.call(self.process, node.process, "node-recall", status, answered, "node-said")

    def tick(self) -> None:
        if self.handover.busy:
            self._carry(self.handover.tick(self.network.clock.now))

    # --- placement

    def schedule(self, wanted: list[core.Wanted], gang: bool, reserve: bool, hops: int, call: Call) -> None:
        def decide() -> None:
            now = self.network.clock.now
            who = NOBODY if self._homes is None else Standing(call.home, call.waited_s)
            op, out = self.machine.schedule(
                wanted, gang=gang, reserve=reserve, hops=hops, near=call.near, who=who, now=now
            )
            self._calls[op] = call
            self._carry(out)

        def begin() -> None:
            more = (len(wanted) - 1) * self.network.cost("schedule", False)
            self.process.core.spend(more)
            self.network.do(self.process, "schedule", decide, own=True)

        if self.probe_cache:
            begin()
        else:
            self._probe(begin)

    def place(self, place: Place, home: FunctionID, epoch: int, reply: Reply) -> None:
        wanted = [core.Wanted(i, revision) for revision, ids in place.items for i in ids]
        self.network.fleet.count("decisions", len(wanted))
        self.schedule(
            wanted,
            place.gang,
            False,
            0,
            Call(home, epoch, tuple(place.waiting), reply, place.waited_s, place.near),
        )

    def learn(self, status: NodeStatus, down: str = "") -> None:
        """`down`: why it is not there any more."""
        now = self.network.clock.now
        if not self._told and now > HEARD_OF_S:
            return
        if down:
            self.machine.partition.forget(status.node)
        else:
            self.handover.heard(status, now)

    def _probe(self, then: Callable[[], None]) -> None:
        known = [c.status.node for c in self.machine.partition.candidates()]
        asked = self._rng.sample(known, min(PROBES, len(known)))
        left = len(asked)
        if not left:
            then()

        def answered() -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        for name in asked:
            self._ask(core.SendProbe(0, name, name), answered)

    def _ask(self, i: core.SendProbe, then: Callable[[], None] | None = None) -> None:
        self.network.fleet.count("probes")
        node = self.nodes[i.node]

        def answered(status: object) -> None:
            known = status if isinstance(status, NodeStatus) else None
            self._carry(self.machine.probed(i.op, i.node, known, self.network.clock.now))
            if then is not None:
                then()

        status, lost = node.machine.status, partial(answered, None)
        self.network.call(self.process, node.process, "probe", status, answered, "probed", lost)

    def _carry(self, instructions: Iterable[core.Instruction | TellRoom | AskRoom | Claim | Recall]) -> None:
        for i in instructions:
            match i:
                case Claim():
                    self._claim(i)
                case Recall():
                    self._recall(i)
                case core.SendStart():
                    self._start(i)
                case core.SendCommit():
                    self._commit(i)
                case core.Forward():
                    self._forward(i)
                case core.SendProbe():
                    self._ask(i)
                case core.Answer():
                    self._calls.pop(i.op).reply(i)
                    if self.machine.line.waiters and not self._giving:
                        self._giving = True
                        self.network.clock.after(GIVE_S, self._give)
                case TellRoom():
                    assert self._homes is not None
                    self._homes.room_for(self.process, self.id, i, partial(self.machine.line.leaves, i.key))
                case AskRoom():
                    assert self._homes is not None
                    self._homes.make_room(self.process, i, partial(self._made, i))

    def _give(self) -> None:
        """As long as anybody waits: a look at all nodes when they have changed, and now and then."""
        now = self.network.clock.now
        self._giving = bool(self.machine.line.waiters) and not self.process.dead
        if self._giving:
            self.network.clock.after(GIVE_S, self._give)
        learned = self.machine.partition.learned
        if not self.process.runs(now) or (learned == self._learned and now < self._give_at):
            return
        self._learned, self._give_at = learned, now + GIVE_AGAIN_S
        looked = len(self.machine.partition.candidates())
        self.process.core.spend(looked * self.network.cost("candidate", False))
        self._carry(self.machine.tick(now))

    def _made(self, i: AskRoom, count: int) -> None:
        self.machine.line.yielded(i, count, self.network.clock.now)

    def _start(self, i: core.SendStart) -> None:
        call, node = self._calls[i.op], self.nodes[i.node]
        order = Order(i.instance, i.revision, call.epoch, call.home, call.home, call.waiting, i.reserve)
        term = self.handover.terms.get(i.node, 0)

        def answered(said: object) -> None:
            verdict, status = _verdict(said)
            if verdict.moved:
                self._carry(self.handover.refused(i.node, term, self.network.clock.now))
            reason = verdict.reason or None
            out = self.machine.started(i.op, i.instance, i.node, i.addr, reason, status, stale=verdict.stale)
            self._carry(out)

        def lost() -> None:
            self._carry(self.machine.start_lost(i.op, i.instance, i.node, "no answer", sent=True))

        start = partial(node.start, order._replace(term=term))
        self.network.call(self.process, node.process, "start", start, answered, "started", lost)

    def _commit(self, i: core.SendCommit) -> None:
        node = self.nodes[NodeID(i.addr)]
        epoch = self._calls[i.op].epoch

        def answered(said: object) -> None:
            verdict, status = _verdict(said)
            if i.cancel:
                self.machine.partition.refresh(status)
            else:
                out = self.machine.committed(i.op, i.instances, verdict.reason or None, status)
                self._carry(out)

        ask = partial(node.commit, i.instances, epoch, i.cancel)
        self.network.call(self.process, node.process, "commit", ask, answered, "started")

    def _forward(self, i: core.Forward) -> None:
        call, other = self._calls[i.op], self.others[i.function]
        self.network.fleet.count("borrowed", len(i.wanted))

        def ask(reply: Reply) -> None:
            here = Call(call.home, call.epoch, call.waiting, reply, call.waited_s, call.near)
            other.schedule(list(i.wanted), False, i.reserve, i.hops, here)

        def answered(said: object) -> None:
            assert isinstance(said, core.Answer)
            self.machine.rooms.heard([other.machine.room()])
            self._carry(self.machine.forwarded(i.op, i.function, said.placed, said.refused))

        def lost() -> None:
            refused = [core.Refusal(w.instance, "no answer", unknown=NodeID("?")) for w in i.wanted]
            self._carry(self.machine.forwarded(i.op, i.function, (), refused))

        self.network.ask(self.process, other.process, "ack", ask, answered, "started", lost)

    # --- gossip

    def gossip(self) -> None:
        """One round: how much room there is where, to those that the machine names."""
        now = self.network.clock.now
        for to, rooms, wants in self.machine.gossip():
            other = self.others[to]
            if not (other.process.runs(now) and self.network.reaches(self.process, other.process)):
                continue
            self.network.aside(other.process, "room")
            better = other.machine.rooms.heard(rooms, wants=wants)
            self.machine.rooms.heard(better)
            a_room = self.network.cost("room", False)
            other.process.core.spend(len(rooms) * a_room)
            self.process.core.spend(len(better) * a_room)


def outcomes(answer: core.Answer) -> dict[InstanceID, Outcome]:
    """As a home wants to hear of it."""
    placed = {p.instance: Outcome(p.instance, p.node) for p in answer.placed}
    refused = {
        r.instance: Outcome(r.instance, reason=r.reason, unknown=r.unknown, never=r.never)
        for r in answer.refused
    }
    return placed | refused


def _verdict(said: object) -> tuple[Verdict, NodeStatus]:
    assert isinstance(said, tuple)
    verdict, status = said
    assert isinstance(verdict, Verdict)
    assert isinstance(status, NodeStatus)
    return verdict, status
