"""A full cluster in virtual time: real Schedule machines, nodes that admit for real, homes that ask again.

Homes here do what core/dispatch does as far as the line sees it: they ask for what is missing, again after growing
pauses and as soon as they are told of room, and give up instances when asked to, down to their least number.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from kserve_ext.core.facts import Holding, NodeStatus, Resources, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.schedule import facts as core
from kserve_ext.core.schedule.facts import AskRoom, Standing, TellRoom
from kserve_ext.core.schedule.machine import ScheduleMachine
from tests.core.schedule.test_placement import revision

STEP_S = 0.1
DRAIN_S = 1.0


@dataclass
class Node:
    name: NodeID
    capacity: Resources
    machine: str
    running: dict[InstanceID, tuple[Revision, float]] = field(default_factory=dict)
    reserved: dict[InstanceID, tuple[Revision, float]] = field(default_factory=dict)
    draining: dict[InstanceID, tuple[Revision, float]] = field(default_factory=dict)
    seq: int = 0

    @property
    def free(self) -> Resources:
        free = self.capacity
        for held in (self.running, self.reserved, self.draining):
            for of, _ in held.values():
                free = free.minus(of.needs)
        return free

    def status(self) -> NodeStatus:
        self.seq += 1
        held: dict[RevisionKey, list[tuple[Revision, float]]] = {}
        for of, at in [*self.running.values(), *self.reserved.values()]:
            held.setdefault(of.key, []).append((of, at))
        holdings = tuple(
            Holding(
                key, of[0][0].home_key, of[0][0].priority, of[0][0].needs, len(of), max(at for _, at in of)
            )
            for key, of in held.items()
        )
        assert min(self.free) >= 0, f"{self.name} runs more than it has"
        return NodeStatus(
            self.name, f"{self.name}:1", 1, self.seq, self.capacity, self.free, holdings=holdings
        )


@dataclass
class Home:
    """What one revision, or the revisions of one gang, want."""

    members: tuple[Revision, ...]
    machine: str
    gang: bool = False
    least: int = 0
    wanted: int = 1
    since: float | None = None
    retry_at: float = 0.0
    setbacks: int = 0
    asking: bool = False
    placed_at: list[float] = field(default_factory=list)
    reason: str = ""
    preempted: list[str] = field(default_factory=list)


class FullCluster:
    def __init__(
        self,
        partitions: dict[str, Sequence[Resources]],
        seed: int = 0,
        weights: dict[str, float] | None = None,
        *,
        line: bool = True,
    ) -> None:
        """`line` False: nobody can be told of room, so that nobody stands in line for it."""
        self.line = line
        self.random = random.Random(seed)
        self.now = 0.0
        self.machines = {name: ScheduleMachine(FunctionID(name), weights=weights) for name in partitions}
        self.nodes: dict[NodeID, Node] = {}
        for name, sizes in partitions.items():
            for k, size in enumerate(sizes):
                node = Node(NodeID(f"{name}-n{k}"), size, name)
                self.nodes[node.name] = node
                self._tell(node)
        self.homes: dict[str, Home] = {}
        self.log: list[str] = []
        self._queue: list[tuple[str, core.Instruction | TellRoom | AskRoom]] = []
        self._calls: dict[tuple[str, int], tuple[str, core.Forward] | str] = {}
        self._ids = 0

    # --- what a test does

    def want(
        self,
        name: str,
        cpu: int,
        count: int = 1,
        *,
        priority: int = 0,
        preempts: bool = False,
        least: int = 0,
        machine: str | None = None,
        gang: Sequence[int] = (),
    ) -> Home:
        """`name`: namespace/revision. `gang`: the needs of its members instead."""

        def member(key: str, needs: int) -> Revision:
            of = revision(needs, 1, key=key, uri="")
            group = name if gang else ""
            return of._replace(priority=priority, preempts=preempts, group=group)

        members = (
            tuple(member(f"{name}-{k}", needs) for k, needs in enumerate(gang))
            if gang
            else (member(name, cpu),)
        )
        at = machine or next(iter(self.machines))
        home = self.homes[name] = Home(members, at, bool(gang), least, 1 if gang else count)
        return home

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.now = round(self.now + STEP_S, 3)
            for node in self.nodes.values():
                for instance, (_, at) in list(node.draining.items()):
                    if self.now >= at:
                        del node.draining[instance]
                        self._tell(node)
                for instance, (_, at) in list(node.reserved.items()):
                    if self.now - at > 5.0:
                        del node.reserved[instance]
            if self.now % 1.0 < STEP_S:  # as ClusterMgr functions do, changed or not
                for node in self.nodes.values():
                    self._tell(node)
            self._gossip()
            for name in self.machines:
                self._put(name, self.machines[name].tick(self.now))
            names = list(self.homes)
            self.random.shuffle(names)
            for name in names:
                self._ask(name)
            self.flush()

    def end(self, key: str, count: int = 1) -> None:
        """Instances of a revision end by themselves."""
        for node in self.nodes.values():
            for instance, (of, _) in list(node.running.items()):
                if of.key == key and count:
                    count -= 1
                    del node.running[instance]
                    self._tell(node)

    def ask(self, name: str) -> None:
        """Its home asks now: no pass over the line has come between this and what happened before."""
        self.homes[name].retry_at = self.now
        self._ask(name)
        self.flush()

    def count(self, key: str) -> int:
        return sum(of.key == key for n in self.nodes.values() for of, _ in n.running.values())

    # --- how it works

    def _tell(self, node: Node) -> None:
        self.machines[node.machine].partition.learn(node.status(), self.now)

    def _missing(self, home: Home) -> int:
        if home.gang:
            return home.wanted if not any(self.count(m.key) for m in home.members) else 0
        return home.wanted - self.count(home.members[0].key)

    def _ask(self, name: str, at: str = "") -> None:
        home = self.homes[name]
        missing = self._missing(home)
        if missing <= 0:
            home.since = None
        if home.asking or missing <= 0 or (self.now < home.retry_at and not at):
            return
        wanted = []
        for of in home.members if home.gang else home.members * missing:
            self._ids += 1
            wanted.append(core.Wanted(InstanceID(f"{of.key}-{self._ids}"), of))
        home.asking = True
        waited = self.now - home.since if home.since is not None else 0.0
        machine = at or home.machine
        op, out = self.machines[machine].schedule(
            wanted, gang=home.gang, who=self._standing(name, waited), now=self.now
        )
        self._calls[machine, op] = name
        self._put(machine, out)

    def _standing(self, name: str, waited: float) -> Standing:
        return Standing(name, waited) if self.line else Standing()

    def _answered(self, name: str, answer: core.Answer) -> None:
        home = self.homes[name]
        home.asking = False
        home.placed_at += [self.now] * len(answer.placed)
        if home.gang:
            assert not (answer.placed and answer.refused), "a gang is placed whole or not at all"
        if answer.placed:
            self.log.append(
                f"{self.now:5.1f} {name} runs on {' '.join(sorted(p.node for p in answer.placed))}"
            )
            home.since, home.setbacks = None, 0
        if answer.refused:
            home.reason = answer.refused[0].reason
            if home.since is None:
                home.since = self.now
                self.log.append(f"{self.now:5.1f} {name} waits: {home.reason}")
            home.retry_at = self.now + min(2.0, 0.2 * 2**home.setbacks)
            home.setbacks += 1

    def _yield(self, i: AskRoom) -> int:
        home = next(h for h in self.homes.values() if any(m.key == i.victim for m in h.members))
        given = 0
        node = self.nodes[i.node]
        for instance, (of, _) in sorted(node.running.items(), key=lambda item: -item[1][1]):
            if of.key == i.victim and given < i.count and self.count(of.key) > home.least:
                del node.running[instance]
                node.draining[instance] = (of, self.now + DRAIN_S)
                given += 1
        self.log.append(f"{self.now:5.1f} {i.victim} gives up {given} of {i.count} on {i.node}: {i.reason}")
        home.preempted += [i.reason] * given
        home.retry_at = max(home.retry_at, self.now + 0.2)
        self._tell(node)
        return given

    def _gossip(self) -> None:
        for machine in self.machines.values():
            machine.rooms.view({FunctionID(name) for name in self.machines})
            machine.rooms.heard([other.room() for other in self.machines.values()])

    def _put(self, machine: str, instructions: Sequence[core.Instruction | TellRoom | AskRoom]) -> None:
        self._queue.extend((machine, i) for i in instructions)

    def flush(self) -> None:
        steps = 0
        while self._queue:
            steps += 1
            assert steps < 20_000, "a placement goes round in circles"
            name, i = self._queue.pop(self.random.randrange(len(self._queue)))
            machine = self.machines[name]
            match i:
                case core.SendStart():
                    node = self.nodes[i.node]
                    short = i.revision.needs.short_of(node.free)
                    if not short:
                        held = node.reserved if i.reserve else node.running
                        held[i.instance] = (i.revision, self.now)
                    out = machine.started(i.op, i.instance, i.node, i.addr, short or None, node.status())
                    self._put(name, out)
                case core.SendCommit():
                    node = next(n for n in self.nodes.values() if f"{n.name}:1" == i.addr)
                    for instance in i.instances:
                        held_one = node.reserved.pop(instance, None)
                        if held_one is not None and not i.cancel:
                            node.running[instance] = held_one
                    if i.cancel:
                        self.machines[node.machine].partition.refresh(node.status())
                    else:
                        self._put(name, machine.committed(i.op, i.instances, None, node.status()))
                case core.Forward():
                    other = self.machines[i.function]
                    asked = self._origin(name, i.op)
                    home = self.homes[asked]
                    waited = self.now - home.since if home.since is not None else 0.0
                    op, out = other.schedule(
                        i.wanted,
                        reserve=i.reserve,
                        hops=i.hops,
                        who=self._standing(asked, waited),
                        now=self.now,
                    )
                    self._calls[i.function, op] = (name, i)
                    self._put(i.function, out)
                case core.Answer():
                    whose = self._calls.pop((name, i.op))
                    if isinstance(whose, str):
                        self._answered(whose, i)
                    else:
                        asker, forward = whose
                        out = self.machines[asker].forwarded(
                            forward.op, FunctionID(name), i.placed, i.refused
                        )
                        self._put(asker, out)
                case TellRoom():
                    if self._missing(self.homes[i.home_addr]) <= 0:
                        machine.line.leaves(i.key)
                    else:
                        self._ask(i.home_addr, at=name)
                case AskRoom():
                    machine.line.yielded(i, self._yield(i), self.now)

    def _origin(self, machine: str, op: int) -> str:
        whose = self._calls[machine, op]
        return whose if isinstance(whose, str) else self._origin(whose[0], whose[1].op)
