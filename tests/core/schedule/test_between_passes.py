"""Room that comes between two passes over the line: nobody gets past those who wait by asking at the right moment."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import NodeStatus, Resources, Revision
from kserve_ext.core.ids import FunctionID, InstanceID
from kserve_ext.core.schedule.facts import Answer, Instruction, SendStart, Standing, TellRoom, Wanted
from kserve_ext.core.schedule.line import BOOKED_S
from kserve_ext.core.schedule.machine import ScheduleMachine
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


# --- one node, and two that wait for room on it


def free(cpu: int, seq: int) -> NodeStatus:
    return status("n1", Resources(cpu, 8192), seq=seq)


def asks(machine: ScheduleMachine, of: Revision, instance: str, now: float) -> tuple[int, list[Instruction]]:
    return machine.schedule([Wanted(InstanceID(instance), of)], who=Standing("home:1"), now=now)


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
