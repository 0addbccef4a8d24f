"""The node agent's machine: admits, starts and ends the instances of one node, and says who must be told what.

Every instance is admitted against the ledger first, holds its part until its process is gone, and is known to a
home: its home is told each change at once and the whole of a revision every Timing.full_s; what the home does
not want, or no home has taken notice of for Timing.orphan_s, is stopped. Actions under an epoch older than one
already obeyed for the revision are refused. It starts no process and knows no clock: instructions say what to
carry out, and each outcome comes back as an event (here, or in kserve_ext/core/node/lives.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kserve_ext.core.facts import Instance, Label, Mark, NodeStatus
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.node.admission import Ledger
from kserve_ext.core.node.facts import (
    EndZygote,
    Instruction,
    Order,
    Report,
    StartZygote,
    Tell,
    Timing,
    Verdict,
)
from kserve_ext.core.node.homes import Homes
from kserve_ext.core.node.instance_life import End, Life, facts_of
from kserve_ext.core.node.lives import Lives
from kserve_ext.core.node.slots import Slots

TICK_GAP_S = 2.0  # ticks further apart than this mean that the node was suspended


class NodeMachine:
    def __init__(
        self,
        node: NodeID,
        addr: str,
        incarnation: int,
        ledger: Ledger,
        slots: Slots,
        timing: Timing = Timing(),  # noqa: B008
        labels: tuple[Label, ...] = (),
    ) -> None:
        self.node, self.addr, self.incarnation = node, addr, incarnation
        self.ledger, self.slots, self.timing = ledger, slots, timing
        self.homes = Homes(timing.full_s)
        self.lives = Lives(node, ledger, slots, self.homes, timing)
        #: what nodeSelectors and the choice of places near each other go by, in order
        self.labels = tuple(sorted({"kubernetes.io/hostname": node, **dict(labels)}.items()))
        self.models: tuple[str, ...] = ()
        self.wanted: tuple[str, ...] = ()  # runtime modules whose zygotes are kept ready
        self.accepting = True
        self.admitted_total = self.refused_total = self.stale_total = self.duplicate_total = 0
        #: the newest term of a Schedule function that has asked for a start here: no older one is obeyed
        self.term = 0
        self._seq = 0
        self._ticked: float | None = None

    # --- asked by Schedule functions and homes

    def start(self, order: Order, now: float) -> tuple[Verdict, list[Instruction]]:
        key = order.revision.key
        if order.epoch < self.homes.obeyed(key):
            self.stale_total += 1
            return Verdict(self._stale(key, order.epoch), stale=True), []
        life = self.lives.known.get(order.instance)
        if life is not None and not life.ended:
            self.duplicate_total += 1
            if life.state == "reserved" and not order.reserve:
                return Verdict(), self.lives.begin(life, now, [])
            return Verdict(), []
        if life is not None or self.lives.has_ended(order.instance):
            self.duplicate_total += 1
            return Verdict(f"instance {order.instance} has already ended on node {self.node}"), []
        if order.term and order.term < self.term:
            self.stale_total += 1
            why = f"node {self.node} has another Schedule function since epoch {self.term}, not {order.term}"
            return Verdict(why, moved=True), []
        self.term = max(self.term, order.term)
        if not self.accepting:
            self.refused_total += 1
            return Verdict(f"node {self.node} accepts no starts: its agent is going"), []
        given = self.slots.make_room(order.instance, order.revision.needs, order.revision.command.zygote)
        out: list[Instruction] = [EndZygote(module) for module in given]
        short = self.ledger.admit(order.instance, order.revision.needs)
        if short:
            self.refused_total += 1
            out.extend(EndZygote(module) for module in self.slots.forked(order.instance))
            return Verdict(f"node {self.node}: {short}"), out
        self.admitted_total += 1
        self.homes.obey(key, order.epoch, order.home_addr)
        life = Life(order.instance, order.revision, order.epoch, now, order.waiting)
        life.mark(*order.marks, Mark("admitted", now, self.node))
        self.lives.add(life)
        self.homes.follow(order.revision, now + self.timing.full_s)
        # No Report: the answer says it to whom it matters, and everybody else hears with the next heartbeat.
        if order.reserve:
            life.deadline = now + order.reserve_s
            return Verdict(), out
        return Verdict(), self.lives.begin(life, now, out)

    def commit(
        self,
        instances: Sequence[InstanceID],
        epoch: int,
        now: float,
        *,
        cancel: bool = False,
        reason: str = "",
    ) -> tuple[Verdict, list[Instruction]]:
        """Starts all of these reservations or none; with `cancel` releases those that are still reserved."""
        out: list[Instruction] = []
        if cancel:
            for instance in instances:
                life = self.lives.known.get(instance)
                if life is not None and life.state == "reserved":
                    self.lives.finish(life, End(False, reason or "its reservation was cancelled"), now, out)
            return Verdict(), out
        for instance in instances:
            life = self.lives.known.get(instance)
            if life is None or life.ended:
                return Verdict(
                    f"node {self.node} has no reservation of {instance}: it lapsed or was cancelled"
                ), []
            if epoch < self.homes.obeyed(life.revision.key):
                self.stale_total += 1
                return Verdict(self._stale(life.revision.key, epoch), stale=True), []
        for instance in instances:
            if self.lives.known[instance].state == "reserved":
                self.lives.begin(self.lives.known[instance], now, out)
        return Verdict(), out

    def stop(
        self, instance: InstanceID, epoch: int, drain_s: float, reason: str, now: float
    ) -> tuple[Verdict, list[Instruction]]:
        life = self.lives.known.get(instance)
        if life is None:
            return Verdict(), []
        if epoch < self.homes.obeyed(life.revision.key):
            self.stale_total += 1
            return Verdict(self._stale(life.revision.key, epoch), stale=True), []
        out: list[Instruction] = []
        self.lives.stop(life, End(False, reason or "its home stopped it"), drain_s, now, out)
        return Verdict(), out

    def recall(
        self, epoch: int, home_addr: str, revisions: Iterable[RevisionKey], now: float
    ) -> tuple[tuple[Instance, ...], int]:
        """What runs here of these revisions, for a new home; and the highest epoch obeyed for any of them."""
        keys = set(revisions)
        highest = epoch
        for key in keys:
            highest = max(highest, self.homes.obeyed(key))
            if epoch >= self.homes.obeyed(key):
                self.homes.obey(key, epoch, home_addr)
        lives = [life for life in self.lives.known.values() if life.revision.key in keys]
        if highest == epoch:
            for life in lives:
                life.acked_at = now
        return facts_of(lives, self.node), highest

    def wants(self, modules: Iterable[str], now: float) -> list[Instruction]:
        """Runtime modules of the revisions this node could run: their zygotes are kept ready from now on."""
        self.wanted = tuple(sorted(modules))
        return [StartZygote(module) for module in self.wanted if self.slots.want(module, now)]

    # --- outcomes

    def zygote_ready(self, module: str) -> list[Instruction]:
        self.slots.is_ready(module)
        return [Report()]

    def zygote_died(self, module: str, now: float) -> list[Instruction]:
        self.slots.died(module, now)
        return [Report()]

    def models_changed(self, models: Iterable[str]) -> list[Instruction]:
        models = tuple(sorted(models))
        changed, self.models = models != self.models, models
        return [Report()] if changed else []

    # --- the world

    def view(self, epoch: int, dispatch: Mapping[FunctionID, str], now: float) -> None:
        self.homes.view(epoch, dispatch, now)

    def tick(self, now: float) -> list[Instruction]:
        """Deadlines, orphans, zygotes to start again, and the periodic full ModInstance."""
        out: list[Instruction] = []
        gap = now - self._ticked if self._ticked is not None else 0.0
        self._ticked = now
        for life in list(self.lives.known.values()):
            if gap > TICK_GAP_S:
                life.acked_at += gap
            self.lives.tick(life, now, out)
        out.extend(StartZygote(module) for module in self.slots.due(now))
        out.extend(StartZygote(module) for module in self.wanted if self.slots.want(module, now))
        for key, addr in self.homes.take_due(now):
            facts = facts_of(self.lives.of(key), self.node)
            out.append(Tell(key, addr, True, facts, True, self.homes.epoch(key)))
        return out

    def status(self, *, brief: bool = False) -> NodeStatus:
        """`brief`: without the holdings, which are as many as there are revisions here."""
        self._seq += 1
        return NodeStatus(
            node=self.node,
            addr=self.addr,
            incarnation=self.incarnation,
            seq=self._seq,
            capacity=self.ledger.capacity,
            free=self.slots.free,
            slots=self.slots.ready(),
            models=self.models,
            instances=self.lives.running,
            accepting=self.accepting,
            labels=self.labels,
            holdings=() if brief else self.lives.holdings(),
        )

    def check(self) -> None:
        """Invariants, for tests: what has not ended holds its part, and nothing else does."""
        self.ledger.check()
        self.lives.check()
        for life in self.lives.known.values():
            assert self.ledger.holds(life.id) != life.ended, f"{life.id} {life.state}\n{life.story()}"
            assert self.homes.follows(life.revision.key), f"{life.id}: its home would not be told"

    # --- inside

    def _stale(self, key: RevisionKey, epoch: int) -> str:
        return f"epoch {epoch} is older than {self.homes.obeyed(key)}, which node {self.node} has obeyed for {key}"
