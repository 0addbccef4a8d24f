"""The Schedule function's machine, driven against model nodes that admit for real, in random orders."""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import Holding, NodeStatus, Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.schedule import facts as core
from kserve_ext.core.schedule.fairness import Shares
from kserve_ext.core.schedule.machine import ScheduleMachine
from kserve_ext.core.schedule.rooms import Room
from tests.core.schedule.test_placement import revision, status


class Node:
    """A node that admits, reserves, commits and cancels as the node agent does."""

    def __init__(self, name: str, capacity: Resources) -> None:
        self.name, self.capacity, self.seq = NodeID(name), capacity, 0
        self.running: dict[InstanceID, Resources] = {}
        self.reserved: dict[InstanceID, Resources] = {}

    @property
    def free(self) -> Resources:
        free = self.capacity
        for needs in [*self.running.values(), *self.reserved.values()]:
            free = free.minus(needs)
        return free

    def status(self) -> NodeStatus:
        self.seq += 1
        return status(self.name, self.free, capacity=self.capacity, seq=self.seq)

    def start(self, i: core.SendStart) -> str | None:
        short = i.revision.needs.short_of(self.free)
        if short:
            return short
        (self.reserved if i.reserve else self.running)[i.instance] = i.revision.needs
        return None

    def commit(self, i: core.SendCommit) -> None:
        for instance in i.instances:
            needs = self.reserved.pop(instance)
            if not i.cancel:
                self.running[instance] = needs


class Cluster:
    """Machines and nodes; outcomes are delivered in a random order."""

    def __init__(self, partitions: dict[str, list[Node]], seed: int) -> None:
        self.machines = {name: ScheduleMachine(FunctionID(name)) for name in partitions}
        self.nodes = {n.name: n for nodes in partitions.values() for n in nodes}
        self.random = random.Random(seed)
        self.queue: list[tuple[str, core.Instruction]] = []
        self.answers: dict[tuple[str, int], core.Answer] = {}
        self.parents: dict[tuple[str, int], tuple[str, core.Forward]] = {}
        self.lose_start: set[NodeID] = set()
        for name, nodes in partitions.items():
            for node in nodes:
                self.machines[name].partition.learn(node.status())
        self.gossip()

    def gossip(self) -> None:
        functions = {FunctionID(name) for name in self.machines}
        for machine in self.machines.values():
            machine.rooms.view(functions)
            machine.rooms.heard([other.room() for other in self.machines.values()])

    def put(self, machine: str, instructions: Iterable[core.Instruction]) -> None:
        self.queue.extend((machine, i) for i in instructions)

    def schedule(self, machine: str, wanted: list[core.Wanted], *, gang: bool = False) -> core.Answer:
        op, out = self.machines[machine].schedule(wanted, gang=gang)
        self.put(machine, out)
        self.run()
        return self.answers[machine, op]

    def run(self) -> None:
        steps = 0
        while self.queue:
            steps += 1
            assert steps < 10_000, "a placement goes round in circles"
            name, i = self.queue.pop(self.random.randrange(len(self.queue)))
            machine = self.machines[name]
            match i:
                case core.SendStart():
                    node = self.nodes[i.node]
                    if i.node in self.lose_start:
                        self.put(name, machine.start_lost(i.op, i.instance, i.node, "gone", sent=True))
                        continue
                    reason = node.start(i)
                    self.put(name, machine.started(i.op, i.instance, i.node, i.addr, reason, node.status()))
                case core.SendCommit():
                    node = next(n for n in self.nodes.values() if f"{n.name}:1" == i.addr)
                    node.commit(i)
                    if not i.cancel:
                        self.put(name, machine.committed(i.op, i.instances, None, node.status()))
                case core.Forward():
                    other = self.machines[i.function]
                    op, out = other.schedule(i.wanted, reserve=i.reserve, hops=i.hops)
                    self.parents[i.function, op] = (name, i)
                    self.put(i.function, out)
                case core.Answer():
                    parent = self.parents.pop((name, i.op), None)
                    if parent is None:
                        self.answers[name, i.op] = i
                    else:
                        asker, forward = parent
                        self.put(
                            asker,
                            self.machines[asker].forwarded(forward.op, FunctionID(name), i.placed, i.refused),
                        )


def wanted(n: int, cpu: int = 1000, prefix: str = "i") -> list[core.Wanted]:
    return [core.Wanted(InstanceID(f"{prefix}{k}"), revision(cpu)) for k in range(n)]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.lists(st.integers(0, 6), min_size=0, max_size=3), min_size=1, max_size=3),
    calls=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.booleans()), min_size=1, max_size=5),
)
def test_every_instance_is_answered_once_and_runs_where_the_answer_says(
    seed: int, sizes: list[list[int]], calls: list[tuple[int, int, bool]]
) -> None:
    partitions = {
        f"s{p}": [Node(f"n{p}{k}", Resources(size * 1000, 4096)) for k, size in enumerate(nodes)]
        for p, nodes in enumerate(sizes)
    }
    cluster = Cluster(partitions, seed)
    promised: set[tuple[str, str]] = set()
    for k, (count, cpu, gang) in enumerate(calls):
        ask = wanted(count, cpu * 1000, prefix=f"c{k}-")
        answer = cluster.schedule("s0", ask, gang=gang)
        names = [p.instance for p in answer.placed] + [r.instance for r in answer.refused]
        assert sorted(names) == sorted(w.instance for w in ask)
        if gang:
            assert not answer.placed or not answer.refused
        assert all(r.reason for r in answer.refused)
        promised |= {(p.instance, p.node) for p in answer.placed}
    running = {(i, n.name) for n in cluster.nodes.values() for i in n.running}
    assert running == promised
    assert all(not n.reserved for n in cluster.nodes.values())
    assert all(min(n.free) >= 0 for n in cluster.nodes.values())
    assert all(m.under_way == 0 for m in cluster.machines.values())


def test_an_exhausted_partition_asks_the_roomiest_one() -> None:
    cluster = Cluster(
        {
            "s0": [Node("a", Resources(1000, 4096))],
            "s1": [Node("b", Resources(2000, 4096))],
            "s2": [Node("c", Resources(9000, 4096))],
        },
        seed=1,
    )
    answer = cluster.schedule("s0", wanted(3))
    assert {p.node for p in answer.placed} == {"a", "c"}
    assert not answer.refused


def test_a_refusal_says_what_the_partitions_lack_that_were_not_worth_asking() -> None:
    cluster = Cluster({"s0": [], "s1": [Node("b", Resources(2000, 4096))]}, seed=1)
    answer = cluster.schedule("s0", wanted(1, cpu=64000))
    reason = answer.refused[0].reason
    assert "partition s0 has no nodes" in reason
    assert "partition s1: cpu: needs 64000m, 2000m free on its roomiest node" in reason


def test_a_gang_that_fits_only_in_part_starts_nothing_and_says_which() -> None:
    cluster = Cluster({"s0": [Node("a", Resources(1500, 4096))]}, seed=1)
    answer = cluster.schedule("s0", wanted(2), gang=True)
    assert not answer.placed
    assert "its gang can't be placed" in answer.refused[1].reason + answer.refused[0].reason
    assert cluster.nodes[NodeID("a")].running == {}


def test_a_gang_may_span_partitions() -> None:
    cluster = Cluster(
        {"s0": [Node("a", Resources(1000, 4096))], "s1": [Node("b", Resources(1000, 4096))]}, seed=3
    )
    answer = cluster.schedule("s0", wanted(2), gang=True)
    assert {p.node for p in answer.placed} == {"a", "b"}
    for name, node in (("s0", "a"), ("s1", "b")):
        known = [c.status.node for c in cluster.machines[name].partition.candidates()]
        assert known == [node], "the answer to a commit is no reason to place on another partition's node"


def test_a_late_answer_of_a_node_that_moved_does_not_bring_it_back() -> None:
    machine = ScheduleMachine(FunctionID("s0"))
    machine.partition.learn(status("a"))
    op, out = machine.schedule(wanted(1))
    start = out[0]
    assert isinstance(start, core.SendStart)
    machine.view(set(), {FunctionID("s0")})
    answer = machine.started(op, start.instance, start.node, start.addr, None, status("a", seq=2))[0]
    assert isinstance(answer, core.Answer)
    assert [p.node for p in answer.placed] == ["a"]
    assert not machine.partition.candidates()


def test_what_was_admitted_counts_until_its_node_says_again_what_is_held() -> None:
    machine = ScheduleMachine(FunctionID("s0"))
    held = Holding(RevisionKey("team/x"), "team/x", 0, Resources(500, 512), 2, 1.0)
    machine.partition.learn(status("a")._replace(holdings=(held,)))
    (asked,) = wanted(1)
    op, out = machine.schedule([asked])
    start = out[0]
    assert isinstance(start, core.SendStart)
    brief = status("a", seq=2)
    machine.started(op, start.instance, start.node, start.addr, None, brief, admitted=start.revision)
    (candidate,) = machine.partition.candidates()
    assert candidate.status.holdings == (held,), "as last said"
    assert candidate.admitted == (asked.revision,)
    shares = Shares([candidate], {})
    assert shares.of(asked.revision.namespace) > 0
    machine.partition.learn(status("a", seq=3))
    (candidate,) = machine.partition.candidates()
    assert candidate.admitted == ()
    assert candidate.status.holdings == ()


def test_what_an_older_home_asks_for_is_asked_of_no_second_node() -> None:
    machine = ScheduleMachine(FunctionID("s0"))
    for name in "ab":
        machine.partition.learn(status(name))
    op, out = machine.schedule(wanted(1))
    start = out[0]
    assert isinstance(start, core.SendStart)
    why = "epoch 2 is older than 3"
    (answer,) = machine.started(
        op, start.instance, start.node, start.addr, why, status(start.node, seq=2), stale=True
    )
    assert isinstance(answer, core.Answer)
    assert [r.reason for r in answer.refused] == [why]
    assert machine.conflicts_total == 0


def test_what_an_older_home_asks_for_takes_nobody_the_place_in_line_and_gets_none() -> None:
    machine = ScheduleMachine(FunctionID("s0"))
    machine.partition.learn(status("a", Resources(), seq=1))

    def asks(home: str, now: float, *, stale: bool) -> core.Answer:
        op, out = machine.schedule(wanted(1, prefix=f"{home}-{now}-"), who=core.Standing(home), now=now)
        (first,) = out
        if isinstance(first, core.SendStart):
            said = status("a", seq=3)
            why = "epoch 2 is older than 3" if stale else None
            (first,) = machine.started(op, first.instance, first.node, first.addr, why, said, stale=stale)
        assert isinstance(first, core.Answer)
        return first

    assert asks("newer", 1.0, stale=False).refused
    machine.partition.learn(status("a", seq=2))
    assert asks("older", 1.1, stale=True).refused
    (told,) = machine.tick(1.2)
    assert isinstance(told, core.TellRoom)
    assert told.home_addr == "newer"
    assert asks("newer", 1.3, stale=False).placed
    assert asks("older", 1.4, stale=True).refused
    assert not machine.line.waiters
    assert machine.tick(1.5) == []


def test_an_older_home_that_asks_when_room_has_come_for_others_doesn_t_stand_in_line_afterwards() -> None:
    machine = ScheduleMachine(FunctionID("s0"))
    machine.partition.learn(status("a", Resources(), seq=1))
    machine.schedule(
        [core.Wanted(InstanceID("large"), revision(64_000, key="default/large"))], who=core.Standing("other")
    )
    assert len(machine.line.waiters) == 1
    machine.partition.learn(status("a", seq=2))
    op, (start,) = machine.schedule(wanted(1), who=core.Standing("older"), now=1.0)
    assert isinstance(start, core.SendStart)
    assert len(machine.line.waiters) == 2
    machine.started(op, start.instance, start.node, start.addr, "old", status("a", seq=3), stale=True)
    assert [w.home_addr for w in machine.line.waiters.values()] == ["other"]


def test_a_start_whose_answer_is_lost_is_not_repeated_under_the_same_id() -> None:
    cluster = Cluster({"s0": [Node("a", Resources(4000, 4096)), Node("b", Resources(1000, 4096))]}, seed=1)
    cluster.lose_start.add(NodeID("a"))
    answer = cluster.schedule("s0", wanted(1))
    assert answer.refused[0].unknown == "a"
    assert not cluster.nodes[NodeID("b")].running


def test_a_node_that_cannot_be_reached_is_passed_over() -> None:
    machine = ScheduleMachine(FunctionID("s0"))
    for node in ("a", "b"):
        machine.partition.learn(status(node))
    op, out = machine.schedule(wanted(1))
    first = out[0]
    assert isinstance(first, core.SendStart)
    out = machine.start_lost(op, first.instance, first.node, "refused", sent=False)
    second = out[0]
    assert isinstance(second, core.SendStart)
    assert second.node != first.node


def test_a_gang_fits_whatever_the_order_it_is_asked_in() -> None:
    """node-a has 3 of 4 free, node-b 4 of 4; one member needs 3, the other 4."""
    for sizes in ((3000, 4000), (4000, 3000)):
        cluster = Cluster(
            {"s0": [Node("a", Resources(3000, 4096)), Node("b", Resources(4000, 4096))]}, seed=1
        )
        ask = [core.Wanted(InstanceID(f"i{cpu}"), revision(cpu)) for cpu in sizes]
        answer = cluster.schedule("s0", ask, gang=True)
        assert {p.instance: p.node for p in answer.placed} == {"i3000": "a", "i4000": "b"}


def test_never_is_said_only_when_every_node_is_known_and_too_small() -> None:
    cluster = Cluster({"s0": [Node("a", Resources(2000, 4096))], "s1": []}, seed=1)
    machine = cluster.machines["s0"]
    large = wanted(1, cpu=64000)
    assert not cluster.schedule("s0", large).refused[0].never, "before the first view"
    machine.view({NodeID("a"), NodeID("b")}, {FunctionID("s0"), FunctionID("s1")})
    assert not cluster.schedule("s0", large).refused[0].never, "b has not been heard of"
    machine.view({NodeID("a")}, {FunctionID("s0"), FunctionID("s1")})
    assert not cluster.schedule("s0", large).refused[0].never, "s1 has not said what it has"
    machine.rooms.heard([Room(FunctionID("s1"), (0, 1), Resources(), Resources(), 0, Resources())])
    refused = cluster.schedule("s0", large).refused[0]
    assert refused.never
    assert "larger node" in refused.reason
    full = cluster.schedule("s0", wanted(3, prefix="f"))
    assert [r.never for r in full.refused] == [False], "full is not too small"
    gang = cluster.schedule("s0", [*wanted(1, prefix="g"), *large], gang=True)
    assert [r.never for r in gang.refused] == [True, True]


def test_a_node_that_is_away_for_a_moment_still_counts() -> None:
    cluster = Cluster({"s0": [Node("a", Resources(2000, 4096)), Node("big", Resources(64000, 4096))]}, seed=1)
    machine = cluster.machines["s0"]
    machine.partition.forget(NodeID("big"))
    machine.view({NodeID("a")}, {FunctionID("s0")})
    assert not cluster.schedule("s0", wanted(1, cpu=64000)).refused[0].never
