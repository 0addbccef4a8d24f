"""Room that comes between two passes over the line: nobody gets past those who wait by asking at the right moment."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import NodeStatus, Resources, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule import line
from kserve_ext.core.schedule.facts import (
    Answer,
    Forward,
    Instruction,
    Refusal,
    SendStart,
    Standing,
    TellRoom,
    Wanted,
)
from kserve_ext.core.schedule.filters import Candidate
from kserve_ext.core.schedule.gangs import choose_gang
from kserve_ext.core.schedule.line import BOOKED_S
from kserve_ext.core.schedule.machine import ScheduleMachine
from kserve_ext.core.schedule.rooms import Room
from tests.core.schedule.full_cluster import FullCluster
from tests.core.schedule.test_placement import revision, status


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    classes=st.lists(st.integers(0, 9), min_size=2, max_size=5, unique=True),
    new=st.booleans(),
    steps=st.integers(1, 40),
    asks=st.lists(st.integers(0, 4), max_size=6),
    nodes=st.integers(1, 2),
)
def test_the_highest_class_gets_the_room_whoever_asks_when_it_comes(
    seed: int, classes: list[int], new: bool, steps: int, asks: list[int], nodes: int
) -> None:
    """Homes ask at any moment after the room has come, one of them for the first time if `new`."""
    cluster = FullCluster({"s0": [Resources(2000, 64_000)] * nodes}, seed)
    cluster.want("a/holds", 1000, 2 * nodes)
    cluster.run(0.2)
    names = [f"a/m{of}" for of in classes]
    last = len(classes) - 1 if new else len(classes)
    for name, of in zip(names[:last], classes, strict=False):
        cluster.want(name, 1000, priority=of)
    cluster.run(0.1 * steps)
    cluster.homes["a/holds"].wanted -= 1
    cluster.end("a/holds")
    if new:
        cluster.want(names[last], 1000, priority=classes[last])
        cluster.ask(names[last])
    for k in asks:
        cluster.ask(names[k % len(names)])
    cluster.run(3.0)
    assert [name for name in names if cluster.count(name)] == [f"a/m{max(classes)}"]


def test_who_is_next_is_told_of_room_that_another_has_asked_for_and_once() -> None:
    machine, high, low = full()
    machine.partition.learn(free(1000, 2), 1.0)
    _, out = asks(machine, low, "low-2", 1.0)
    assert [type(i) for i in out] == [Answer], "it is refused"
    assert machine.tick(1.01) == [TellRoom(high.key, "home:1", (high.key,))]
    assert machine.tick(1.02) == []
    _, out = asks(machine, high, "high-2", 1.03)
    assert isinstance(out[0], SendStart)


def test_who_has_taken_its_room_before_it_was_told_is_not_told_of_it() -> None:
    machine, high, low = full()
    machine.partition.learn(free(1000, 2), 1.0)
    asks(machine, low, "low-2", 1.0)
    _, out = asks(machine, high, "high-2", 1.0)
    assert isinstance(out[0], SendStart)
    assert machine.tick(1.01) == []


def test_one_that_was_late_for_its_room_has_it_before_a_lower_class_that_has_not_come_yet() -> None:
    machine, high, low = full()
    machine.partition.learn(free(1000, 2), 1.0)
    assert told(machine, 1.01) == [high.key]
    assert told(machine, 1.1 + BOOKED_S) == [low.key], "it doesn't stay empty for one that doesn't come"
    _, out = asks(machine, high, "high-2", 3.2)
    assert isinstance(out[0], SendStart)
    _, out = asks(machine, low, "low-2", 3.2)
    assert [type(i) for i in out] == [Answer], "it is refused"


def test_one_that_is_late_for_its_room_is_passed_over_until_it_asks() -> None:
    machine, high, low = full()
    machine.partition.learn(free(1000, 2), 1.0)
    assert told(machine, 1.01) == [high.key]
    assert told(machine, 1.1 + BOOKED_S) == [low.key]
    _, out = asks(machine, low, "low-2", 3.2)
    assert isinstance(out[0], SendStart)
    _, out = asks(machine, high, "high-2", 3.3)
    assert [type(i) for i in out] == [Answer], "others have it"
    machine.partition.learn(free(2000, 3), 3.4)
    assert told(machine, 3.5) == [high.key]


def test_one_that_asks_for_the_first_time_waits_no_longer_than_its_call() -> None:
    machine, _, _ = full()
    machine.partition.learn(free(3000, 2), 1.0)
    other = revision(1000, key="default/other-00001", uri="")
    op, out = asks(machine, other, "other-1", 1.0)
    (start,) = [i for i in out if isinstance(i, SendStart)]
    machine.started(op, start.instance, start.node, start.addr, None, free(2000, 3))
    assert other.key not in machine.line.waiters
    assert len(machine.line.waiters) == 2


def test_room_that_comes_while_one_asks_elsewhere_is_its_own_before_a_lower_class_asks() -> None:
    """A pass finds it asking, and nobody else in line; the room is free when it stands in line again."""
    machine, high, low = full()
    machine.line.leaves(low.key)
    machine.rooms.view({FunctionID("s0"), FunctionID("s1")})
    large = Resources(8000, 64_000)
    machine.rooms.heard([Room(FunctionID("s1"), (1, 1), large, large, 2, large)])
    op, (forward,) = asks(machine, high, "high-2", 1.0)
    assert isinstance(forward, Forward)
    machine.partition.learn(free(1000, 2), 1.1)
    assert machine.tick(1.2) == []
    refused = [Refusal(w.instance, "full") for w in forward.wanted]
    machine.forwarded(op, forward.function, (), refused)
    _, out = asks(machine, low, "low-2", 1.3)
    assert not [i for i in out if isinstance(i, SendStart)]
    assert told(machine, 1.31) == [high.key]


def test_room_that_others_gave_back_is_of_who_was_refused_meanwhile() -> None:
    """There is no more of it than in the last pass; but then it was of no use to those who waited."""
    machine, high, low = full()
    for of in (high, low):
        machine.line.leaves(of.key)
    asks(machine, revision(2000, key="default/large-00001", uri=""), "large", 0.7)
    machine.partition.learn(free(1000, 2), 0.8)
    assert machine.tick(0.9) == []
    op, (start,) = asks(machine, revision(1000, key="default/other-00001", uri=""), "other", 1.0)
    assert isinstance(start, SendStart)
    asks(machine, high, "high-2", 1.01)
    machine.start_lost(op, start.instance, start.node, "no answer", sent=True)
    _, out = asks(machine, low, "low-2", 1.02)
    assert [type(i) for i in out] == [Answer], "it is refused"
    assert told(machine, 1.03) == [high.key]


def test_one_that_is_told_late_of_its_room_is_not_late_for_it() -> None:
    """The function itself was held up between the call that found its room and the next pass."""
    machine, high, low = full()
    machine.partition.learn(free(1000, 2), 1.0)
    asks(machine, low, "low-2", 1.0)
    assert told(machine, 1.1 + BOOKED_S) == [high.key]
    assert told(machine, 1.2 + BOOKED_S) == []
    assert told(machine, 1.2 + 2 * BOOKED_S) == [low.key]


def test_one_that_found_some_of_its_room_is_told_of_the_next_at_once() -> None:
    machine, high, _ = full()
    asks(machine, high, "high-2", 0.7, count=2)
    machine.partition.learn(free(1000, 2), 1.0)
    assert told(machine, 1.01) == [high.key]
    op, (start,) = asks(machine, high, "high-3", 1.02, count=2)
    assert isinstance(start, SendStart)
    machine.started(op, start.instance, start.node, start.addr, None, free(0, 3))
    machine.partition.learn(free(1000, 4), 1.05)
    assert told(machine, 1.06) == [high.key]


def told_of_none(machine: ScheduleMachine, high: Revision) -> None:
    """It is told of room that a node then refuses, and other room comes at once."""
    machine.partition.learn(free(1000, 2), 1.0)
    assert told(machine, 1.01) == [high.key]
    op, (start,) = asks(machine, high, "high-2", 1.02)
    assert isinstance(start, SendStart)
    machine.started(op, start.instance, start.node, start.addr, "full", free(0, 3))
    machine.partition.learn(free(1000, 4), 1.05)


def test_one_whose_room_was_none_is_passed_over_for_a_moment() -> None:
    machine, high, low = full()
    told_of_none(machine, high)
    assert told(machine, 1.06) == [low.key]


def test_room_that_comes_while_one_rests_is_its_own_afterwards() -> None:
    machine, high, low = full()
    machine.line.leaves(low.key)
    told_of_none(machine, high)
    assert told(machine, 1.06) == []
    _, out = asks(machine, low, "low-2", 1.3)
    assert [type(i) for i in out] == [Answer], "it is refused"
    assert told(machine, 1.31) == [high.key]


def test_nobody_is_told_twice_of_what_several_calls_have_found() -> None:
    machine = ScheduleMachine(FunctionID("s0"))
    for name in ("n1", "n2"):
        machine.partition.learn(status(name, Resources(0, 8192), seq=1), 0.0)
    high = revision(1000, key="default/high-00001", uri="")._replace(priority=9)
    low = revision(1000, key="default/low-00001", uri="")
    other = revision(1000, key="default/other-00001", uri="")
    for of in (high, low):
        asks(machine, of, f"{of.key}-1", 0.5)
    machine.partition.learn(free(1000, 2), 1.0)
    assert told(machine, 1.0) == [high.key]
    machine.line._lapse(1.0 + BOOKED_S)
    machine.partition.learn(free(1000, 3), 3.1)
    machine.partition.learn(status("n2", Resources(0, 8192), seq=2), 3.1)
    _, out = asks(machine, other, "other-1", 3.1)
    assert [type(i) for i in out] == [Answer], "low is next, and yet to be told"
    machine.partition.learn(status("n2", Resources(1000, 8192), seq=3), 3.11)
    _, out = asks(machine, high, "high-2", 3.11)  # takes one of the two, and low has the other
    assert isinstance(out[0], SendStart)
    assert told(machine, 3.12) == [low.key]
    assert machine.line.told_total == 2


def test_a_pass_over_many_that_differ_compares_each_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, compared = ScheduleMachine(FunctionID("s0")), []
    machine.partition.learn(free(0, 1), 0.0)
    for k in range(100):  # none of them needs less of everything than another
        asks(machine, revision(1000 + k, 1000 - k, key=f"default/m{k:02}", uri=""), f"m{k}", 0.5)
    harder = line._harder

    def counted(waiter: line.Waiter, than: Revision) -> bool:
        compared.append(waiter.key)
        return harder(waiter, than)

    monkeypatch.setattr(line, "_harder", counted)
    machine.partition.learn(free(1099, 2), 1.0)
    assert told(machine, 1.0) == ["default/m00"]
    assert len(compared) <= 100 * line.MOST_COMPARED
    machine.line.leaves("default/m00")
    machine.line.leaves("default/m01")
    assert told(machine, 1.1) == ["default/m02"]


def test_a_pass_over_many_gangs_that_need_the_same_looks_for_their_nodes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster, looked = FullCluster({"s0": [Resources(1000, 64_000)] * 2}), []
    cluster.want("a/holds", 1000, 2)
    cluster.run(0.2)
    for k in range(9):
        cluster.want(f"b/pair{k}", 0, gang=(1000, 1000))
    cluster.run(0.2)

    def counted(members: Sequence[Revision], candidates: Sequence[Candidate]) -> tuple[NodeID, ...] | None:
        looked.append(len(members))
        return choose_gang(members, candidates)

    monkeypatch.setattr(line, "choose_gang", counted)
    cluster.homes["a/holds"].wanted = 1
    cluster.end("a/holds")
    machine = cluster.machines["s0"]
    assert machine.tick(cluster.now) == []
    assert looked == [2]
    cluster.homes["a/holds"].wanted = 0
    cluster.end("a/holds")
    assert len(machine.tick(cluster.now)) == 1
    assert len(looked) <= 3


# --- one node, and two that wait for room on it


def free(cpu: int, seq: int) -> NodeStatus:
    return status("n1", Resources(cpu, 8192), seq=seq)


def asks(
    machine: ScheduleMachine, of: Revision, instance: str, now: float, count: int = 1
) -> tuple[int, list[Instruction]]:
    wanted = [Wanted(InstanceID(f"{instance}-{k}"), of) for k in range(count)]
    return machine.schedule(wanted, who=Standing("home:1"), now=now)


def told(machine: ScheduleMachine, now: float) -> list[str]:
    return [i.key for i in machine.tick(now) if isinstance(i, TellRoom)]


def full() -> tuple[ScheduleMachine, Revision, Revision]:
    machine = ScheduleMachine(FunctionID("s0"))
    machine.partition.learn(free(0, 1), 0.0)
    high = revision(1000, key="default/high-00001", uri="")._replace(priority=9)
    low = revision(1000, key="default/low-00001", uri="")
    for of in (high, low):
        asks(machine, of, f"{of.key}-1", 0.5)
    assert machine.tick(0.6) == []
    return machine, high, low
