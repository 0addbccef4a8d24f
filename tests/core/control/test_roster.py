"""The controller's functions, where nodes die, refuse, forget and don't answer, and the controller dies itself."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve_ext.core.control.facts import NEEDS, Bounds, Kept, Reading, Room, ScaledKind, revision_of
from kserve_ext.core.control.machine import ElasticMachine, Instruction, Remember
from kserve_ext.core.control.roster import (
    OUT_S,
    SETTLE_S,
    STOP_AGAIN_S,
    WELL_S,
    Drain,
    Roster,
    Say,
    Start,
    Stop,
)
from kserve_ext.core.control.scaling import Pace
from kserve_ext.core.facts import Instance, Member, Resources, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID

KIND: ScaledKind = "schedule"
T: dict[ScaledKind, float] = {"dispatch": 100.0, "schedule": 100.0, "cluster_mgr": 100.0}
PACE = Pace(stable_s=5.0, shrink_s=1.0, cool_s=0.5, wave_s=5.0)
TICK_S = 0.1
FULL_S = 2.0


class Node:
    def __init__(self, name: str, places: int) -> None:
        self.name = NodeID(name)
        self.places = places
        self.there = True
        self.running: set[FunctionID] = set()
        self.started: list[FunctionID] = []

    @property
    def free(self) -> Resources:
        left = self.places - len(self.running)
        return Resources(NEEDS.cpu_milli * left, NEEDS.memory_mib * left)


class World:
    """Nodes, and the controller; `min` functions are somebody else's and always there."""

    def __init__(self, places: tuple[int, ...], bounds: Bounds) -> None:
        self.now = 0.0
        self.bounds = bounds
        self.nodes = {f"node-{n}": Node(f"node-{n}", room) for n, room in enumerate(places)}
        self.draining: set[FunctionID] = set()
        self.kept = Kept()
        self.lose_answers = False
        self.said: list[str] = []
        self.per_function = 0.0
        self.boot()

    def boot(self) -> None:
        self.machine = ElasticMachine({KIND: self.bounds}, self.kept, self.now, T, PACE)

    # --- what is there

    def functions(self) -> list[FunctionID]:
        own = [f for n in self.nodes.values() if n.there for f in n.running]
        return [*[FunctionID(f"schedule-{n}") for n in range(self.bounds.min)], *sorted(own)]

    def view(self) -> View:
        members = [Member(f, KIND, "", 1, draining=f in self.draining) for f in self.functions()]
        nodes = [Member(FunctionID(n.name), "node", n.name, 1) for n in self.nodes.values() if n.there]
        return View(1, (*members, *nodes))

    def carry_out(self, instructions: list[Instruction]) -> None:
        for i in instructions:
            if isinstance(i, Remember):
                self.kept = i.kept
            elif isinstance(i, Start):
                assert any(o.id == i.function for o in self.kept.owned), "started before it was remembered"
                self.start(i)
            elif isinstance(i, Drain):
                self.draining.add(i.function)
            elif isinstance(i, Stop):
                self.stop(i)
            else:
                self.said.append(i.text)

    def start(self, i: Start) -> None:
        node = self.nodes[i.node]
        if not node.there:
            return
        refusal = "" if len(node.running) < node.places else "cpu: needs 500m, 0m free"
        if not refusal:
            assert i.function not in node.started, "started twice"
            node.running.add(i.function)
            node.started.append(i.function)
        if not self.lose_answers:
            self.carry_out(self.machine.started(i.function, refusal, self.now))

    def stop(self, i: Stop) -> None:
        node = self.nodes[i.node]
        if node.there and i.function in node.running:
            self.end(node, i.function, "gone")

    def end(self, node: Node, function: FunctionID, state: str) -> None:
        node.running.discard(function)
        self.tell(node, [self.fact(node, function, state)])

    def fact(self, node: Node, function: FunctionID, state: str = "ready") -> Instance:
        return Instance(InstanceID(function), revision_of(KIND), node.name, state, reason="by the test")  # type: ignore[arg-type]

    def tell(self, node: Node, facts: list[Instance]) -> None:
        unwanted, out = self.machine.told(node.name, facts, self.now)
        self.carry_out(out)
        for instance in unwanted:
            node.running.discard(FunctionID(instance))

    def tick(self) -> None:
        self.now += TICK_S
        for node in self.nodes.values():
            if node.there:
                self.machine.room(node.name, node.name, node.free)
                if round(self.now / TICK_S) % round(FULL_S / TICK_S) == 0:
                    self.tell(node, [self.fact(node, f) for f in sorted(node.running)])
        working = [f for f in self.functions() if f not in self.draining]
        for f in working:
            self.machine.report(f, KIND, Reading(self.per_function))
        if self.per_function > T[KIND]:
            for f in working:
                self.machine.apply(f, KIND, Reading(self.per_function), self.now)
        self.carry_out(self.machine.step(self.view(), self.now, consistent=True))

    def ticks(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.tick()

    @property
    def own(self) -> list[FunctionID]:
        return [f for f in self.functions()[self.bounds.min :] if f not in self.draining]

    @property
    def wanted(self) -> int:
        return self.machine.scalings[KIND].wanted - self.bounds.min

    def grow(self, count: int) -> None:
        """As if it had been decided, with work for as many."""
        self.per_function = 90.0
        scaling = self.machine.scalings[KIND]
        scaling.wanted = self.bounds.min + count
        self.ticks(SETTLE_S + 1)


class Elastic(RuleBasedStateMachine):
    """Any of it, in any order; at the end there are as many as are wanted, and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World((4, 4, 4), Bounds(1, 6))

    @rule(count=st.integers(0, 5))
    def so_many_are_wanted(self, count: int) -> None:
        self.world.machine.scalings[KIND].wanted = 1 + count

    @rule(load=st.sampled_from([0.0, 50.0, 90.0, 120.0, 300.0]))
    def load(self, load: float) -> None:
        self.world.per_function = load

    @rule(which=st.integers(0, 10), state=st.sampled_from(["failed", "gone"]))
    def one_dies(self, which: int, state: str) -> None:
        nodes = [(n, f) for n in self.world.nodes.values() for f in sorted(n.running) if n.there]
        if nodes:
            self.world.end(*nodes[which % len(nodes)], state)

    @rule(which=st.integers(0, 2), there=st.booleans())
    def a_node_goes_or_comes_back(self, which: int, there: bool) -> None:
        self.world.nodes[f"node-{which}"].there = there

    @rule(lose=st.booleans())
    def answers_get_lost(self, lose: bool) -> None:
        self.world.lose_answers = lose

    @rule()
    def the_controller_dies(self) -> None:
        self.world.boot()

    @rule(ticks=st.sampled_from([1, 3, 10, 40]))
    def time(self, ticks: int) -> None:
        for _ in range(ticks):
            self.world.tick()

    @invariant()
    def within_bounds(self) -> None:
        world = self.world
        assert 0 <= world.wanted <= 5
        names = [f for n in world.nodes.values() for f in n.running]
        assert len(names) == len(set(names))

    def teardown(self) -> None:
        world = self.world
        world.per_function = 0.0
        for node in world.nodes.values():
            node.there = True
        world.lose_answers = False
        world.ticks(80.0)  # to the least, and every stray is stopped
        assert world.wanted == 0
        assert world.functions() == ["schedule-0"], world.said[-20:]
        assert world.machine.roster.owned() == ()


Elastic.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestElastic = Elastic.TestCase


def test_functions_are_spread_over_nodes_with_room() -> None:
    world = World((1, 3, 3), Bounds(1, 6))
    world.grow(5)
    assert [len(n.running) for n in world.nodes.values()] == [1, 2, 2]
    assert world.machine.roster.counts(KIND).running == 5


def test_one_that_dies_is_replaced_on_another_node_under_another_name() -> None:
    world = World((4, 4), Bounds(1, 3))
    world.grow(1)
    (dead,) = world.own
    node = next(n for n in world.nodes.values() if n.running)
    world.ticks(WELL_S)
    world.end(node, dead, "failed")
    world.ticks(1.0)
    (another,) = world.own
    assert another != dead
    assert not node.running
    assert "by the test" in world.machine.roster.short.get(KIND, "") or any(
        "another one in" in s for s in world.said
    )


def test_one_that_keeps_dying_is_started_ever_later() -> None:
    world = World((4,), Bounds(1, 2))
    world.grow(1)
    node = world.nodes["node-0"]
    for _ in range(300):
        for f in sorted(node.running):
            world.end(node, f, "failed")
        world.tick()
    assert len(node.started) < 12


def test_one_that_keeps_dying_beside_one_that_runs_on_is_started_ever_later() -> None:
    world = World((4,), Bounds(1, 3))
    world.grow(1)
    (old,) = world.own
    world.ticks(WELL_S)
    world.grow(2)
    node = world.nodes["node-0"]
    for _ in range(300):
        for f in sorted(node.running - {old}):
            world.end(node, f, "failed")
        world.tick()
    assert old in node.running
    assert len(node.started) < 13


def test_one_that_its_node_refuses_is_asked_for_ever_later() -> None:
    """Its report says that there is room, and the node knows better."""
    roster = Roster((), 0, 0.0)
    rooms = [Room(NodeID("node-0"), "h:1", Resources(cpu_milli=64_000, memory_mib=64_000))]
    asked = 0
    for tick in range(round(SETTLE_S / TICK_S), round((SETTLE_S + 60.0) / TICK_S)):
        now = tick * TICK_S
        # Three at once are one failure.
        for i in roster.step({KIND: 3}, rooms, {}, consistent=True, now=now):
            if isinstance(i, Start):
                asked += 1
                roster.started(i.function, "this node drains", now)
    assert 3 * 8 <= asked <= 3 * 10


def test_one_out_of_the_view_counts_as_dead_and_is_stopped_at_its_node() -> None:
    world = World((4, 4), Bounds(1, 3))
    world.grow(1)
    (deaf,) = world.own
    node = next(n for n in world.nodes.values() if n.running)
    node.running.remove(deaf)  # it reports no more, and its node hasn't noticed
    asked = []
    for _ in range(round((OUT_S + 1) / TICK_S)):
        world.now += TICK_S
        out = world.machine.step(world.view(), world.now, consistent=True)
        asked += [i for i in out if isinstance(i, Stop)]
        world.carry_out(out)
    assert [i.function for i in asked] == [deaf]
    assert world.own != [deaf]


def test_a_drained_one_is_stopped_only_when_everybody_knows_that_it_goes() -> None:
    world = World((4,), Bounds(1, 3))
    world.grow(2)
    world.machine.scalings[KIND].wanted = 2
    world.now += TICK_S
    first = world.machine.step(world.view(), world.now, consistent=True)
    (goes,) = [i.function for i in first if isinstance(i, Drain)]
    assert goes == "schedule-e2"
    world.draining.add(goes)
    world.now += TICK_S
    assert not [
        i for i in world.machine.step(world.view(), world.now, consistent=False) if isinstance(i, Stop)
    ]
    world.now += TICK_S
    assert [
        i.function
        for i in world.machine.step(world.view(), world.now, consistent=True)
        if isinstance(i, Stop)
    ] == [goes]
    world.now += STOP_AGAIN_S
    assert [i for i in world.machine.step(world.view(), world.now, consistent=True) if isinstance(i, Stop)]
    world.ticks(3.0)
    assert len(world.own) == 1


def test_a_controller_that_comes_back_neither_forgets_nor_doubles() -> None:
    world = World((4, 4), Bounds(1, 4))
    world.grow(2)
    before = world.own
    world.boot()
    world.ticks(10.0)
    assert world.own == before
    assert world.machine.roster.counts(KIND).running == 2


def test_a_controller_whose_store_is_lost_finds_its_functions_at_the_nodes() -> None:
    world = World((4, 4), Bounds(1, 4))
    world.grow(2)
    before = world.own
    world.kept = Kept()
    world.boot()
    world.ticks(SETTLE_S - TICK_S)
    assert world.wanted == 2
    assert world.own == before
    world.machine.scalings[KIND].wanted = 4
    world.ticks(2.0)
    assert len(world.own) == 3
    assert max(world.own) == "schedule-e3"


def test_without_room_it_says_so_once_and_starts_when_there_is_some() -> None:
    world = World((0,), Bounds(1, 2))
    world.grow(1)
    assert [s for s in world.said if "no node has room" in s] == [world.machine.roster.short[KIND]]
    world.nodes["node-0"].places = 1
    world.ticks(2.0)
    assert len(world.own) == 1
    assert KIND not in world.machine.roster.short


def test_growth_is_timed_from_the_application_to_the_consistent_view() -> None:
    world = World((4,), Bounds(1, 3))
    world.ticks(SETTLE_S)
    world.per_function = 150.0
    world.ticks(0.3)
    assert len(world.own) == 1
    grown = world.machine.grown[KIND]
    assert 0 <= grown.joined_s <= 0.3
    assert grown.view_s == 0.0
    assert any("in the view" in s for s in world.said)


def test_only_elastic_kinds_are_given_a_threshold() -> None:
    machine = World((1,), Bounds(1, 2)).machine
    assert machine.threshold("schedule") == 100.0
    assert machine.threshold("dispatch") == 0.0
    assert machine.threshold("node") == 0.0
    assert not [i for i in machine.step(View(), 0.0, consistent=True) if not isinstance(i, Remember | Say)]


def test_of_two_with_the_same_name_the_one_elsewhere_is_stopped() -> None:
    """The store has lost the numbers of names, and a node with one of before comes back."""
    world = World((1, 1), Bounds(1, 2))
    world.grow(1)
    here = next(n for n in world.nodes.values() if n.running)
    other = next(n for n in world.nodes.values() if n is not here)
    (name,) = here.running
    facts = [Instance(InstanceID(name), revision_of(KIND), other.name, "ready")]
    unwanted, out = world.machine.told(other.name, facts, world.now)
    assert unwanted == [InstanceID(name)]
    assert [i for i in out if isinstance(i, Say) and i.bad]
    facts = [Instance(InstanceID(name), revision_of(KIND), here.name, "ready")]
    assert world.machine.told(here.name, facts, world.now) == ([], [])
