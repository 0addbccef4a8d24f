"""Our control plane: the real cores of every function, with a process each, on the nodes that all systems share.

Requests of a function arrive at a few shards, its home among them, as in Knative's activator subsets. Homes call
Schedule functions, these call nodes, nodes tell homes: each message takes a hop and the processor time of costs.py.
Heartbeats, gossip and reports are handled in groups, at their real periods; they cost what they cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from kserve_ext.core import rendezvous
from kserve_ext.core.cluster_mgr import ClusterMgrMachine, TellOwner
from kserve_ext.core.cluster_mgr import Instruction as ManagerInstruction
from kserve_ext.core.dispatch.facts import AskNode, Place, Remember, StopInstance
from kserve_ext.core.dispatch.fleet import NOWHERE
from kserve_ext.core.dispatch.take_over import Copy
from kserve_ext.core.facts import Command, Hold, Kind, Member, Model, Revision, Scale, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.membership import MembershipMachine, Push
from kserve_ext.core.node.facts import Tell
from kserve_ext.core.schedule.machine import Answer
from kserve_ext.sim.fleet import Fleet, Instance, Request
from kserve_ext.sim.parts.dispatch import Dispatch, Told, owner
from kserve_ext.sim.parts.network import Network, Process
from kserve_ext.sim.parts.node import NEEDS, NodeAgent
from kserve_ext.sim.parts.requests import Held
from kserve_ext.sim.parts.schedule import Schedule, outcomes

DISPATCH_TICK_S: Final = 0.1
NODE_TICK_S: Final = 0.5
HEARTBEAT_S: Final = 0.5
GOSSIP_S: Final = 0.5
REPORT_S: Final = 0.5
GROUPS: Final = 10  # nodes beat in so many groups, one after the other


@dataclass(frozen=True)
class Layout:
    """How many functions of each kind, and what of the design is on."""

    dispatch: int = 35
    schedule: int = 35
    cluster_mgr: int = 35
    subset: int = 2  # shards that get the requests of one function
    probe_cache: bool = True
    connection_cache: bool = True
    standby: int = 0  # slots that a node holds ready
    standby_s: float = 0.02  # from admission to ready, from one


FULL: Final = Layout()


def of_each(count: int) -> Layout:
    """So many of each kind, and no probe cache."""
    return Layout(count, count, count, probe_cache=False)


ABLATIONS: Final[dict[str, Layout]] = {
    "G_1": of_each(1),
    "G_8": of_each(8),
    "G_35": of_each(35),
    "G_35-C": replace(of_each(35), connection_cache=False),
    "full": FULL,
}


class Galaxy:
    def __init__(
        self, fleet: Fleet, layout: Layout = FULL, name: str = "galaxy", *, stopwatch: bool = False
    ) -> None:
        self.fleet, self.clock, self.layout, self.name = fleet, fleet.clock, layout, name
        self.network = Network(fleet, cached=layout.connection_cache, stopwatch=stopwatch)
        self.revisions: dict[RevisionKey, Revision] = {}
        self.shards: dict[FunctionID, Dispatch[Held]] = {}
        self.schedulers: dict[FunctionID, Schedule] = {}
        self.managers: dict[FunctionID, ClusterMgrMachine] = {}
        self.processes: dict[FunctionID, Process] = {}
        self.view = View()
        self._copies: dict[RevisionKey, dict[InstanceID, Copy]] = {}
        self._serving: dict[Instance, Held] = {}
        self._where: dict[InstanceID, NodeAgent] = {}
        self._subsets: dict[str, list[FunctionID]] = {}
        self._orders: dict[Kind, tuple[FunctionID, ...]] = {}
        self._ids = 0
        self.nodes: dict[NodeID, NodeAgent] = {}
        for node in fleet.nodes:
            agent = NodeAgent(
                self.network, node, self._told, self._reported, layout.standby, layout.standby_s
            )
            self.nodes[agent.id] = agent
        for kind, count in self._counts():
            for number in range(count):
                self._boot(kind, FunctionID(f"{kind.replace('_', '-')}-{number}"))
        self.controller = self.network.process("controller")
        self.membership = MembershipMachine(View(0, self._members()), self.now)
        for push in self.membership.tick(self.now):
            self._show(push)
            self.membership.acked(push.member.id, push.view.epoch)
        self.grown_at = self.now
        self.settled_at: float | None = self.now
        self._start_clocks()

    @property
    def now(self) -> float:
        return self.clock.now

    def _counts(self) -> tuple[tuple[Kind, int], ...]:
        layout = self.layout
        return (
            ("dispatch", layout.dispatch),
            ("schedule", layout.schedule),
            ("cluster_mgr", layout.cluster_mgr),
        )

    def _boot(self, kind: Kind, name: FunctionID) -> None:
        if kind == "dispatch":
            self.shards[name] = Dispatch(self, name, 1, idle_tick_s=1.0)
            self.processes[name] = self.network.process(name)
        elif kind == "schedule":
            self.schedulers[name] = Schedule(
                self.network,
                name,
                self.nodes,
                self.schedulers,
                probe_cache=self.layout.probe_cache,
                rng=random.Random(f"{self.fleet.world.seed}/{name}"),
            )
            self.processes[name] = self.schedulers[name].process
        else:
            self.managers[name] = ClusterMgrMachine(name, self.now)
            self.processes[name] = self.network.process(name)

    def _members(self) -> tuple[Member, ...]:
        kinds: tuple[tuple[Kind, Sequence[str]], ...] = (
            ("dispatch", list(self.shards)),
            ("schedule", list(self.schedulers)),
            ("cluster_mgr", list(self.managers)),
            ("node", list(self.nodes)),
        )
        return tuple(Member(FunctionID(name), kind, name, 1) for kind, names in kinds for name in names)

    # --- requests

    def arrive(self, request: Request) -> None:
        key = RevisionKey(f"sim/{request.function}")
        if key not in self.revisions:
            self._apply(key, request.function)
        subset = self._subset(key)
        shard = self.shards[subset[self.fleet.rng.randrange(len(subset))]]
        if key not in shard.shard.parts:
            shard.shard.know(self.revisions[key], self.now)
        held = Held(request, key, self.fleet, shard.id)
        self.network.do(self.processes[shard.id], "submit", partial(shard.submit, held))

    def serve(self, held: Held) -> None:
        """Its shard sends it; an instance that doesn't take it breaks off."""
        shard, agent = self.shards[held.shard], self._where.get(held.instance)
        instance = agent.takes(held.instance) if agent is not None else None
        if instance is None:
            self.fleet.count("broken")
            process = self.processes[held.shard]
            self.fleet.hop(lambda: self.network.do(process, "failed", partial(shard.failed, held)))
        else:
            self._serving[instance] = held
            self.fleet.begin(held.request, instance)

    def idle(self, instance: Instance) -> None:
        held = self._serving.pop(instance)
        agent = self._where[held.instance]
        agent.served(held.instance)
        shard = self.shards[held.shard]
        self.network.do(self.processes[held.shard], "finished", partial(shard.finished, held))

    def _subset(self, key: RevisionKey) -> list[FunctionID]:
        found = self._subsets.get(key)
        if found is None:
            ranked = rendezvous.ranked(key, self._order("dispatch"))
            found = self._subsets[key] = ranked[: self.layout.subset]
        return found

    def _apply(self, key: RevisionKey, function: str) -> None:
        """A service of one request at a time an instance, scaled as all systems here scale theirs."""
        scale = Scale(initial=0, target=1.0, utilization=1.0)
        hold = Hold(seconds=3600.0, requests=1_000_000, bytes=1 << 40)
        command = Command((), drain_s=600.0, start_timeout_s=3600.0)
        revision = Revision(key, function, 1, command, Model(), NEEDS, scale, hold, concurrency=1)
        self.revisions[key] = revision
        home = self.home_of(revision.home_key)
        assert home is not None
        self.shards[home].found(revision)

    # --- what Dispatch processes find around them

    def call(
        self,
        caller: Dispatch[Held],
        to: FunctionID,
        kind: str,
        ask: Callable[[Dispatch[Held]], object],
        told: Told | None,
    ) -> None:
        shard = self.shards[to]
        source, target = self.processes[caller.id], self.processes[to]
        self.network.call(source, target, kind, lambda: ask(shard), told, f"{kind}-answer")

    def place(self, caller: Dispatch[Held], place: Place, told: Told) -> None:
        source = self.processes[caller.id]
        home_key = place.items[0][0].home_key
        name = owner(home_key, self._order("schedule"))
        assert name is not None
        function = self.schedulers[name]

        def reply(answer: Answer) -> None:
            self.network.tell(function.process, source, "placed", lambda: told(outcomes(answer)))

        epoch = max(caller.epoch, caller.homes[home_key].term)
        ask = partial(function.place, place, caller.id, epoch, reply)
        self.network.call(source, function.process, "schedule-call", ask, None)

    def stop(self, caller: Dispatch[Held], stop: StopInstance, epoch: int) -> None:
        node = self.nodes[stop.node]
        ask = partial(node.stop, stop.instance, epoch, stop.drain_s, stop.reason)
        self.network.call(self.processes[caller.id], node.process, "stop", ask, None)

    def recall(self, caller: Dispatch[Held], ask: AskNode, epoch: int, told: Told) -> None:
        node = self.nodes[ask.node]
        self.network.call(
            self.processes[caller.id],
            node.process,
            "recall",
            partial(node.recall, epoch, caller.id, ask.revision),
            told,
        )

    def home_of(self, home_key: str) -> FunctionID | None:
        return owner(home_key, self._order("dispatch"))

    def remember(self, what: Remember) -> None:
        """The store, written behind."""
        self.fleet.count("remembered")
        copies = self._copies.setdefault(what.revision, {})
        if what.node == NOWHERE:
            copies.pop(what.instance, None)
        else:
            copies[what.instance] = Copy(what.instance, what.node, what.addr)

    def stored(self, key: RevisionKey) -> tuple[bool, Sequence[Copy]]:
        return key not in self._copies, list(self._copies.get(key, {}).values())

    def new_id(self, key: str) -> InstanceID:
        self._ids += 1
        return InstanceID(f"{key.rpartition('/')[2]}-{self._ids}")

    def say(self, what: str) -> None:
        """Facts are counted by the fleet."""

    # --- what nodes tell

    def _told(self, agent: NodeAgent, tell: Tell) -> None:
        for fact in tell.instances:
            self._where[fact.id] = agent
        shard = self.shards.get(FunctionID(tell.addr))
        if shard is None:
            agent.acknowledged(tell, False, (), 0)
            return
        process = self.processes[shard.id]
        if not tell.home:
            self.network.call(
                agent.process,
                process,
                "announce",
                lambda: shard.announced(tell.revision, tell.instances),
                None,
            )
            return
        home_key = self.revisions[tell.revision].home_key

        def ask() -> object:
            known = home_key in shard.homes
            unwanted = shard.mod_instance(tell.revision, agent.id, tell.instances, tell.full)
            return known, unwanted, shard.epoch

        def answered(said: object) -> None:
            assert isinstance(said, tuple)
            agent.acknowledged(tell, *said)

        self.network.call(agent.process, process, "told", ask, answered, "acknowledged")

    def _reported(self, agent: NodeAgent) -> None:
        """A changed status, at once."""
        name = self._manager(agent)
        machine = self.managers[name]
        status = agent.machine.status()
        process = self.processes[name]

        def ask() -> None:
            self._manage(process, machine.update(status, 1, self.now), aside=False)

        self.network.call(agent.process, process, "update", ask, None)

    def _beat(self, group: int) -> None:
        for agent in list(self.nodes.values())[group::GROUPS]:
            name = self._manager(agent)
            self.network.aside(self.processes[name], "update")
            out = self.managers[name].update(agent.machine.status(), 1, self.now)
            self._manage(self.processes[name], out, aside=True)

    def _manage(self, source: Process, instructions: Sequence[ManagerInstruction], *, aside: bool) -> None:
        for i in instructions:
            if isinstance(i, TellOwner) and not i.down:
                function = self.schedulers[i.owner]
                if aside:
                    self.network.aside(function.process, "mod-node")
                    function.learn(i.status)
                else:
                    learn = partial(function.learn, i.status)
                    self.network.call(source, function.process, "mod-node", learn, None)

    def _manager(self, agent: NodeAgent) -> FunctionID:
        name = owner(agent.id, self._order("cluster_mgr"))
        assert name is not None
        return name

    # --- the view

    def _order(self, kind: Kind) -> tuple[FunctionID, ...]:
        found = self._orders.get(kind)
        if found is None:
            found = self._orders[kind] = tuple(sorted(m.id for m in self.view.of(kind)))
        return found

    def _show(self, push: Push) -> None:
        """A member gets the view."""
        name, view = push.member.id, push.view
        if view.epoch > self.view.epoch:
            self.view, self._orders, self._subsets = view, {}, {}
        if self.network.taken is not None:
            owner.cache_clear()  # what a real process has to compute itself
        nodes = {NodeID(m.id) for m in view.of("node")}
        if name in self.shards:
            members = {m.id: m.incarnation for m in view.of("dispatch")}
            self.shards[name].view(view.epoch, members, nodes)
        elif name in self.schedulers:
            functions = self._order("schedule")
            owned = {node for node in nodes if owner(node, functions) == name}
            self.schedulers[name].machine.view(owned, set(functions))
        elif name in self.managers:
            self._manage(self.processes[name], self.managers[name].view(view, self.now), aside=True)
        else:
            dispatch = {m.id: str(m.id) for m in view.of("dispatch")}
            self.nodes[NodeID(name)].machine.view(view.epoch, dispatch, self.now)

    def grow(self, kind: Kind) -> None:
        """One more function of this kind; `settled_at` is when everybody has the view with it."""
        name = FunctionID(f"{kind.replace('_', '-')}-{len(self._order(kind))}")
        self._boot(kind, name)
        if kind == "dispatch":
            self._tick_every(name, DISPATCH_TICK_S)
        self.grown_at, self.settled_at = self.now, None
        member = Member(name, kind, name, 1)
        self._push(self.membership.join(member, self.view.epoch, 1, self.now))

    def _push(self, pushes: Sequence[Push]) -> None:
        """The view, to each member by a message of its own; as in the shell, what it acknowledged comes back."""
        for push in pushes:
            self.membership.pushed(push.member.id, self.now)
            process = self._process(push.member.id)
            kind = f"view-{push.member.kind}"
            show, acked = partial(self._show, push), partial(self._acked, push)
            self.network.call(self.controller, process, kind, show, lambda _, acked=acked: acked())  # type: ignore[misc]

    def _acked(self, push: Push) -> None:
        self.membership.acked(push.member.id, push.view.epoch)
        if self.settled_at is None and self.membership.consistent():
            self.settled_at = self.now

    def _process(self, name: FunctionID) -> Process:
        found = self.processes.get(name)
        return found if found is not None else self.nodes[NodeID(name)].process

    def control_core_s(self) -> float:
        """Processor time of all functions and the controller, agents on nodes left out."""
        return sum(p.core.busy for p in self.processes.values()) + self.controller.core.busy

    # --- time

    def _tick_every(self, name: FunctionID, first: float) -> None:
        self.clock.every(DISPATCH_TICK_S, partial(self._tick, name), first)

    def _start_clocks(self) -> None:
        for number, name in enumerate(self.shards):
            self._tick_every(name, DISPATCH_TICK_S * (number + 1) / len(self.shards))
        for group in range(GROUPS):
            self._beat(group)
            self.clock.every(HEARTBEAT_S, partial(self._beat, group), HEARTBEAT_S * (group + 1) / GROUPS)
            self.clock.every(
                NODE_TICK_S, partial(self._tick_nodes, group), NODE_TICK_S * (group + 1) / GROUPS
            )
        for function in self.schedulers.values():
            function.gossip(always=True)
        self.clock.every(GOSSIP_S, self._gossip)
        self.clock.every(REPORT_S, self._report)

    def _tick(self, name: FunctionID) -> None:
        self.network.inline(self.processes[name], "tick", self.shards[name].tick)

    def _tick_nodes(self, group: int) -> None:
        for agent in list(self.nodes.values())[group::GROUPS]:
            agent.tick()

    def _gossip(self) -> None:
        always = round(self.now / GOSSIP_S) % 2 == 0
        for function in self.schedulers.values():
            function.gossip(always)
        for name, machine in self.managers.items():
            self._manage(self.processes[name], machine.tick(self.now), aside=True)

    def _report(self) -> None:
        for member in self.view.members:
            self.network.aside(self.controller, "report")
            self.membership.report(member.id, member.incarnation, self.view.epoch, 1, self.now)
        self._push(self.membership.tick(self.now))
