"""Our control plane: the real cores of every function, with a process each, on the nodes that all systems share.

Requests of a function arrive at a few shards, its home among them, as in Knative's activator subsets. Homes call
Schedule functions, these call nodes, nodes tell homes: each message takes a hop and the processor time of costs.py.
What goes on besides is in parts/upkeep.py, who is in the view in parts/controller.py. Functions may die and come
back: faults.py does that, and asks what holds afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from kserve_ext.core import partitions, rendezvous
from kserve_ext.core.cluster_mgr import ClusterMgrMachine
from kserve_ext.core.dispatch.facts import AskNode, Place, Remember, StopInstance
from kserve_ext.core.dispatch.fleet import NOWHERE
from kserve_ext.core.dispatch.take_over import Copy
from kserve_ext.core.facts import Command, Hold, Kind, Member, Model, Revision, Scale, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.membership import Push
from kserve_ext.core.node.facts import Tell
from kserve_ext.core.schedule.facts import Answer, AskRoom, TellRoom
from kserve_ext.sim.fleet import Fleet, Instance, Request
from kserve_ext.sim.layout import FULL, Layout
from kserve_ext.sim.parts.controller import Controller
from kserve_ext.sim.parts.dispatch import Dispatch, Told, owner
from kserve_ext.sim.parts.network import Network, Process
from kserve_ext.sim.parts.node import NEEDS, NodeAgent
from kserve_ext.sim.parts.requests import Held
from kserve_ext.sim.parts.schedule import Schedule, outcomes
from kserve_ext.sim.parts.upkeep import DISPATCH_TICK_S, Upkeep


class Galaxy:
    def __init__(
        self, fleet: Fleet, layout: Layout = FULL, name: str = "galaxy", *, stopwatch: bool = False
    ) -> None:
        self.fleet, self.clock, self.layout, self.name = fleet, fleet.clock, layout, name
        self.network = Network(
            fleet, cached=layout.connection_cache, stopwatch=stopwatch, weight=layout.weight
        )
        self.revisions: dict[RevisionKey, Revision] = {}
        self.shards: dict[FunctionID, Dispatch[Held]] = {}
        self.schedulers: dict[FunctionID, Schedule] = {}
        self.managers: dict[FunctionID, ClusterMgrMachine] = {}
        self.processes: dict[FunctionID, Process] = {}
        #: the process that each function is at present, or was
        self.functions: dict[FunctionID, Member] = {}
        #: Dispatch functions that listen no more: they drain
        self.closed: set[FunctionID] = set()
        self.view = View()
        self._copies: dict[RevisionKey, dict[InstanceID, Copy]] = {}
        self.serving: dict[Instance, Held] = {}
        self.where: dict[InstanceID, NodeAgent] = {}
        self._subsets: dict[str, list[FunctionID]] = {}
        self._orders: dict[Kind, tuple[FunctionID, ...]] = {}
        self._managers: dict[NodeID, FunctionID] = {}
        self._ids = 0
        self.nodes: dict[NodeID, NodeAgent] = {}
        for node in fleet.nodes:
            agent = NodeAgent(self.network, node, self._told, self._reports, layout.standby, layout.standby_s)
            self.nodes[agent.id] = agent
        for kind, count in layout.counts():
            for number in range(count):
                self.boot(kind, FunctionID(f"{kind.replace('_', '-')}-{number}"))
        self.controller = Controller(self.network, self._everybody(), self.process, self._show)
        self.upkeep = Upkeep(
            self.network,
            self.controller,
            self.shards,
            self.schedulers,
            self.managers,
            self.nodes,
            self.processes,
            self._manager,
            self._members,
        )
        self.controller.begin()
        self.upkeep.begin()

    @property
    def now(self) -> float:
        return self.clock.now

    def boot(self, kind: Kind, name: FunctionID, incarnation: int = 1) -> None:
        """A process of it, which knows nothing yet."""
        if kind == "schedule":
            self.schedulers[name] = Schedule(
                self.network,
                name,
                self.nodes,
                self.schedulers,
                probe_cache=self.layout.probe_cache,
                rng=random.Random(f"{self.fleet.world.seed}/{name}/{incarnation}"),
                incarnation=incarnation,
                told=self.layout.told,
                homes=self,
            )
            self.processes[name] = self.schedulers[name].process
        else:
            self.processes[name] = self.network.process(name)
        if kind == "dispatch":
            self.shards[name] = Dispatch(
                self, name, incarnation, idle_tick_s=1.0, together=self.layout.together
            )
        elif kind == "cluster_mgr":
            self.managers[name] = ClusterMgrMachine(name, self.now)
        self.functions[name] = Member(name, kind, name, incarnation)

    def _everybody(self) -> tuple[Member, ...]:
        nodes = (Member(FunctionID(name), "node", name, 1) for name in self.nodes)
        return (*self.functions.values(), *nodes)

    def _members(self) -> tuple[Member, ...]:
        """Those that report: processes that are there, and reach the controller."""
        now, network, controller = self.now, self.network, self.controller.process
        members = ((member, self.process(member.id)) for member in self._everybody())
        return tuple(
            m for m, process in members if process.runs(now) and network.reaches(process, controller)
        )

    # --- requests

    def arrive(self, request: Request) -> None:
        key = RevisionKey(f"sim/{request.function}")
        if key not in self.revisions:
            self._apply(key, request.function)
        subset = self._subset(key)
        name = subset[self.fleet.rng.randrange(len(subset))]
        if not self._listens(name):  # the gateway tries another
            name = next((n for n in subset if self._listens(n)), name)
        shard = self.shards[name]
        if key not in shard.shard.parts:
            shard.shard.know(self.revisions[key], self.now)
        held = Held(request, key, self.fleet, shard.id)
        reset = partial(self.fleet.refuse, request)
        self.network.do(self.processes[name], "submit", partial(shard.submit, held), lost=reset)

    def _listens(self, name: FunctionID) -> bool:
        return name not in self.closed and not self.processes[name].dead

    def serve(self, held: Held) -> None:
        """Its shard sends it; an instance that doesn't take it breaks off."""
        shard, agent = self.shards[held.shard], self.where.get(held.instance)
        instance = agent.takes(held.instance) if agent is not None else None
        if instance is None:
            self.fleet.count("broken")
            if agent is not None and agent.busy(held.instance):
                self.fleet.count("overlapping")
            process = self.processes[held.shard]
            reset = partial(self.fleet.refuse, held.request)
            failed = partial(shard.failed, held)
            self.fleet.hop(lambda: self.network.do(process, "failed", failed, lost=reset))
        else:
            self.serving[instance] = held
            self.fleet.begin(held.request, instance)

    def idle(self, instance: Instance) -> None:
        held = self.serving.pop(instance)
        agent = self.where[held.instance]
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

        def lost() -> None:
            if told is not None:
                told("ended" if kind == "ended" and target.dead else "lost")

        self.network.call(source, target, kind, lambda: ask(shard), told, f"{kind}-answer", lost)

    def place(self, caller: Dispatch[Held], place: Place, told: Told) -> None:
        source = self.processes[caller.id]
        home_key = place.items[0][0].home_key
        there = self._order("schedule")
        name = place.at if place.at in there else owner(home_key, there)
        assert name is not None
        function = self.schedulers[name]

        epoch = max(caller.epoch, caller.homes[home_key].term)
        ask = partial(function.place, place, caller.id, epoch)

        def answered(answer: object) -> None:
            assert isinstance(answer, Answer)
            told(outcomes(answer))

        lost = partial(told, "lost")
        self.network.ask(source, function.process, "schedule-call", ask, answered, "placed", lost)

    # --- what Schedule functions find around them

    def room_for(
        self, caller: Process, function: FunctionID, told: TellRoom, gone: Callable[[], None]
    ) -> None:
        shard = self.shards.get(FunctionID(told.home_addr))
        if shard is None:
            gone()
            return

        def answered(wanted: object) -> None:
            if not wanted:
                gone()

        ask = partial(shard.room_for, told.revisions, function)
        self.network.call(caller, self.processes[shard.id], "announce", ask, answered)

    def make_room(self, caller: Process, asked: AskRoom, made: Callable[[int], None]) -> None:
        home = self.home_of(asked.home_key)
        if home is None:
            made(0)
            return

        def answered(count: object) -> None:
            assert isinstance(count, int)
            made(count)

        shard, lost = self.shards[home], partial(made, 0)
        self.network.call(
            caller, self.processes[home], "announce", partial(shard.make_room, asked), answered, lost=lost
        )

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
            lost=partial(told, "lost"),
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
            self.where[fact.id] = agent
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

        lost = partial(agent.acknowledged, tell, False, (), 0)
        kind = "told-whole" if tell.full else "told"
        self.network.call(agent.process, process, kind, ask, answered, "acknowledged", lost)

    def _reports(self, agent: NodeAgent) -> None:
        self.upkeep.reported(agent)

    def _manager(self, agent: NodeAgent) -> FunctionID:
        found = self._managers.get(agent.id)
        if found is None:
            found = partitions.owner(self.view, "cluster_mgr", agent.id)
            assert found is not None
            self._managers[agent.id] = found
        return found

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
            self.view, self._orders, self._subsets, self._managers = view, {}, {}, {}
        if self.network.taken is not None:
            owner.cache_clear()  # what a real process has to compute itself
        nodes = {NodeID(m.id) for m in view.of("node")}
        if name in self.shards:
            members = {m.id: m.incarnation for m in view.of("dispatch")}
            self.shards[name].view(view.epoch, members, nodes, view.left)
        elif name in self.schedulers:
            self.schedulers[name].view(view)
        elif name in self.managers:
            self.upkeep.manage(self.processes[name], self.managers[name].view(view, self.now), aside=True)
        else:
            dispatch = {m.id: str(m.id) for m in view.of("dispatch")}
            self.nodes[NodeID(name)].machine.view(view.epoch, dispatch, self.now)

    def grow(self, kind: Kind) -> None:
        """One more function of this kind."""
        name = FunctionID(f"{kind.replace('_', '-')}-{len(self._order(kind))}")
        self.boot(kind, name)
        if kind == "dispatch":
            self.upkeep.tick(name, DISPATCH_TICK_S)
        self.controller.join(self.functions[name])

    @property
    def settling_s(self) -> float | None:
        """From the last one's joining to when everybody had the view with it; None: not yet."""
        controller = self.controller
        return None if controller.settled_at is None else controller.settled_at - controller.changed_at

    def process(self, name: FunctionID) -> Process:
        """Of a member."""
        found = self.processes.get(name)
        return found if found is not None else self.nodes[NodeID(name)].process

    def control_core_s(self) -> float:
        """Processor time of all functions and the controller, agents on nodes left out."""
        return sum(p.core.busy for p in self.processes.values()) + self.controller.process.core.busy
