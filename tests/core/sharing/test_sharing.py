"""Slots shared by activators: never more in use than there are, none lost, and they go where requests wait."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, QUIET_S
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.sharing.home import PLEDGE_S
from tests.support.sharing_world import Member, World

LONG_S = QUIET_S + 2 * PLEDGE_S
NAMES = st.sampled_from("abc")


def play_out(world: World) -> None:
    """Until nothing is held or runs; fails when something is stuck."""
    for _ in range(int(LONG_S / 0.5)):
        for member in world.members.values():
            while member.running:
                world.finish(member, 0)
        world.advance(0.5)
        if not world.held and not any(m.running for m in world.members.values()):
            return
    raise AssertionError(f"{world.held} requests are held for good")


def use_all(world: World) -> None:
    """Whoever asks gets every slot, after a while."""
    world.advance(LONG_S)
    member = next(iter(world.members.values()))
    for _ in world.pods * world.concurrency:
        world.submit(member)
    world.advance(1.0)
    for pod in world.pods:
        assert world.in_flight(pod) == world.concurrency, "a slot was lost"


class Calm(RuleBasedStateMachine):
    """Messages arrive, late and in any order; pods are seen at different times; processes die and start."""

    @initialize(concurrency=st.integers(1, 3), pods=st.integers(0, 4))
    def begin(self, concurrency: int, pods: int) -> None:
        self.world = World(concurrency, pods, "abc")

    def member(self, name: str) -> Member | None:
        return self.world.members.get(FunctionID(name))

    @rule(name=NAMES)
    def submit(self, name: str) -> None:
        member = self.member(name)
        if member is not None:
            self.world.submit(member)

    @rule(name=NAMES, at=st.integers(0, 5))
    def finish(self, name: str, at: int) -> None:
        member = self.member(name)
        if member is not None and member.running:
            self.world.finish(member, at % len(member.running))

    @rule()
    def speak(self) -> None:
        self.world.speak()

    @precondition(lambda self: self.world.letters)
    @rule(at=st.integers(0, 10))
    def deliver(self, at: int) -> None:
        self.world.deliver(at % len(self.world.letters))

    @rule(steps=st.integers(1, 30))
    def advance(self, steps: int) -> None:
        self.world.advance(steps * 0.1)

    @rule(pods=st.sets(st.integers(0, 4)))
    def scale(self, pods: set[int]) -> None:
        self.world.pods = tuple(f"p{k}" for k in sorted(pods))

    @rule(names=st.sets(NAMES, min_size=1))
    def endpoints(self, names: set[str]) -> None:
        self.world.listed = tuple(FunctionID(name) for name in sorted(names))
        self.list_somebody_alive()

    def list_somebody_alive(self) -> None:
        world = self.world
        if not world.members.keys() & set(world.listed):
            world.listed = tuple(sorted(world.members)) or world.listed
        world.look()

    @rule(name=NAMES)
    def look(self, name: str) -> None:
        member = self.member(name)
        if member is not None:
            self.world.look(member)

    @rule(name=NAMES)
    def kill(self, name: str) -> None:
        world = self.world
        if self.member(name) is None:
            return
        left = world.members.keys() - {name}
        if left and not left & set(world.listed):  # else all would use what is anybody's, as Knative's do
            world.listed = tuple(sorted(left))
            world.look()
        world.kill(FunctionID(name))
        self.list_somebody_alive()

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        if self.member(name) is None:
            self.world.look(self.world.start(FunctionID(name)))

    @invariant()
    def no_pod_gets_more_than_it_takes(self) -> None:
        for pod in [f"p{k}" for k in range(5)]:
            assert self.world.in_flight(pod) <= self.world.concurrency, pod
        self.world.check()

    def teardown(self) -> None:
        world = self.world
        world.pods = ("p0", "p1")
        world.listed = tuple(sorted(world.members)) or (FunctionID("a"),)
        if world.members:
            world.look()
            play_out(world)
            use_all(world)


class Wild(RuleBasedStateMachine):
    """Messages get lost, links are cut: what may be used is never more than there is, as long as views agree."""

    @initialize(concurrency=st.integers(1, 3), more=st.integers(0, 2))
    def begin(self, concurrency: int, more: int) -> None:
        self.world = World(concurrency, 3 + more, "abc")
        self.world.advance(1.5)

    @rule(name=NAMES)
    def submit(self, name: str) -> None:
        self.world.submit(self.world.members[FunctionID(name)])

    @rule(name=NAMES, at=st.integers(0, 5))
    def finish(self, name: str, at: int) -> None:
        member = self.world.members[FunctionID(name)]
        if member.running:
            self.world.finish(member, at % len(member.running))

    @rule(one=NAMES, two=NAMES)
    def cut(self, one: str, two: str) -> None:
        self.world.cut.add(frozenset((FunctionID(one), FunctionID(two))))

    @rule()
    def notice(self) -> None:
        self.world.reach()

    @rule()
    def heal(self) -> None:
        self.world.cut.clear()

    @precondition(lambda self: self.world.letters)
    @rule(at=st.integers(0, 10))
    def lose(self, at: int) -> None:
        self.world.lose(at % len(self.world.letters))

    @precondition(lambda self: self.world.letters)
    @rule(at=st.integers(0, 10))
    def deliver(self, at: int) -> None:
        self.world.deliver(at % len(self.world.letters))

    @rule(steps=st.integers(1, 70), deliver=st.booleans())
    def advance(self, steps: int, deliver: bool) -> None:
        self.world.advance(steps * 0.1, deliver=deliver)

    @invariant()
    def no_slot_is_for_two(self) -> None:
        world = self.world
        for member in world.members.values():
            member.shard.tick(world.now)
        for pod in world.pods:
            trackers = [member.activation.trackers.get(pod) for member in world.members.values()]
            limits = sum(t.limit for t in trackers if t is not None and t.at >= 0)
            assert limits <= world.concurrency, pod
        world.check()

    def teardown(self) -> None:
        self.world.cut.clear()
        self.world.reach()
        play_out(self.world)
        use_all(self.world)


Calm.TestCase.settings = Wild.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None
)
TestCalm = Calm.TestCase
TestWild = Wild.TestCase


def world_of(concurrency: int, pods: int, names: str = "abc", stock: str = "") -> World:
    world = World(concurrency, pods, names, stock=stock)
    world.advance(1.5)
    return world


def test_slots_go_to_the_one_that_waits() -> None:
    world = world_of(2, 6)
    busy = world.members[FunctionID("b")]
    for _ in range(20):
        world.submit(busy)
    world.advance(0.2)
    assert len(busy.running) == 12, "all slots of all pods"


@pytest.mark.parametrize("first", "abc")
@pytest.mark.parametrize("later_s", [0.0, 0.5, 1.0])
def test_the_slot_of_a_new_pod_goes_to_the_request_that_has_waited_longest(
    first: str, later_s: float
) -> None:
    """Whosever turn it is (dispatch/leases.py: TURN_S), and however many others wait elsewhere."""
    world = world_of(1, 1)
    world.advance(later_s)
    oldest = world.members[FunctionID(first)]
    others = [m for m in world.members.values() if m is not oldest]
    world.submit(others[0])
    world.advance(0.2)
    assert others[0].running, "the only slot is in use"
    world.submit(oldest)
    world.advance(0.2)
    for other in others:
        for _ in range(3):
            world.submit(other)
    world.advance(0.2)
    world.pods = ("p0", "p1")
    world.look()
    while not world.in_flight("p1"):
        world.advance(0.1)
    assert [pod for _, pod in oldest.running] == ["p1"]


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_a_lone_pod_is_never_sent_two(names: str) -> None:
    world = world_of(1, 1, names)
    for member in world.members.values():
        for _ in range(4):
            world.submit(member)
    done = 0
    for _ in range(400):
        world.advance(0.05)
        assert world.in_flight("p0") <= 1
        for member in world.members.values():
            if member.running:
                world.finish(member, 0)
                done += 1
    assert done == 4 * len(names)


def test_what_is_stocks_by_position_stays_stocks() -> None:
    world = world_of(1, 6, "ac", stock="b")
    for member in world.members.values():
        for _ in range(9):
            world.submit(member)
    world.advance(1.0)
    assert [world.usable(pod) for pod in world.pods] == [1, 1, 0, 0, 1, 1]


def test_when_the_home_dies_what_was_held_is_served_by_the_next() -> None:
    world = world_of(1, 3)
    for member in world.members.values():
        for _ in range(10):
            world.submit(member)
    world.advance(1.0)
    home = next(m.id for m in world.members.values() if m.home is not None)
    world.kill(home)
    world.advance(LEASE_TTL_S)
    world.listed = tuple(sorted(world.members))
    world.look()
    play_out(world)
    assert sum(m.home is not None for m in world.members.values()) <= 1


def test_nobody_to_talk_to_means_as_in_knative() -> None:
    world = world_of(2, 6)
    busy = world.members[FunctionID("a")]
    for _ in range(20):
        world.submit(busy)
    world.advance(0.2)
    assert len(busy.running) == 12
    for one in "ab":
        for two in "bc":
            world.cut.add(frozenset((FunctionID(one), FunctionID(two))))
    world.reach()
    world.advance(PLEDGE_S + 1)
    while busy.running:
        world.finish(busy, 0)
        world.advance(0.05)
    for _ in range(20):
        world.submit(busy)
    assert len(busy.running) == 4, "its own by position"


def test_who_is_cut_off_leaves_what_its_home_has_lent_until_that_is_over() -> None:
    """It is its own home then, with nobody to lend to: what was lent by the former one is in use all the same."""
    world = world_of(2, 3)
    home = world.members[FunctionID("a")].shard.home
    lender, busy = (m for m in world.members.values() if m.id != home)
    for _ in range(6):
        world.submit(busy)
    world.advance(0.2)
    assert len(busy.running) == 6, "all slots of all pods"
    for other in world.members.keys() - {lender.id}:
        world.cut.add(frozenset((lender.id, other)))
    world.reach()
    world.submit(lender)
    for _ in range(10):
        world.advance(0.1)
        assert [world.usable(pod) for pod in world.pods] == [2, 2, 2]
    world.advance(PLEDGE_S)
    assert lender.running, "its own is its own again"


def test_nothing_is_said_while_own_slots_are_enough() -> None:
    world = world_of(2, 6)
    for member in world.members.values():
        world.submit(member)  # asks once whether its own is its own
    play_out(world)
    world.advance(LONG_S)
    for member in world.members.values():
        for _ in range(4):
            world.submit(member)
        assert len(member.running) == 4, "at once"
    world.advance(1.0, deliver=False)
    assert world.letters == []


def test_what_was_held_before_there_was_a_pod_is_said_of_though_the_home_was_not_heard() -> None:
    world = world_of(1, 1)
    busy = next(m for m in world.members.values() if not m.shard.own and m.shard.home != m.id)
    world.submit(busy)
    world.advance(0.2)
    world.finish(busy, 0)
    while busy.shard.active(world.now):
        world.advance(0.1)
    assert busy.shard.grants is not None, "it is not free yet"
    for pods in ((), ("p7",)):
        world.pods = pods
        world.look()
        if not pods:
            world.submit(busy)
        world.speak()
        while world.letters:  # such as the Grant of what is there now
            world.lose(0)
    world.advance(0.5)
    assert len(busy.running) == 1


def test_everybody_has_its_own_back_when_nobody_waits_any_more() -> None:
    world = world_of(1, 3)
    busy = world.members[FunctionID("b")]
    for _ in range(9):
        world.submit(busy)
    world.advance(0.2)
    while busy.running:
        world.finish(busy, 0)
    world.advance(1.0)
    for member in world.members.values():
        assert member.shard.grants == member.shard.own
