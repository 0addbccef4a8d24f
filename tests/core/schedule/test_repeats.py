"""A Schedule call that arrives twice places once, whenever the second comes, and both are told the same."""

from __future__ import annotations

from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule import facts as core
from kserve_ext.core.schedule.machine import ScheduleMachine
from kserve_ext.core.schedule.repeats import KEEP
from tests.core.schedule.test_placement import revision, status

SIZE = Resources(cpu_milli=4000, memory_mib=4096)
ONE = [core.Wanted(InstanceID("a-1"), revision())]


def machine() -> ScheduleMachine:
    made = ScheduleMachine(FunctionID("schedule-0"))
    for name in ("node-0", "node-1"):
        made.partition.learn(status(name, SIZE, capacity=SIZE))
    return made


def started(made: ScheduleMachine, start: core.Instruction, reason: str | None = None) -> core.Answer:
    assert isinstance(start, core.SendStart)
    said = status(str(start.node), SIZE, capacity=SIZE, seq=2)
    *_, answer = made.started(
        start.op, start.instance, start.node, start.addr, reason, said, stale=bool(reason)
    )
    assert isinstance(answer, core.Answer)
    return answer


def test_one_that_comes_after_the_answer_is_told_the_same() -> None:
    made = machine()
    _, [start] = made.schedule(ONE)
    first = started(made, start)
    _, again = made.schedule(ONE)
    assert again == [first._replace(op=2)]


def test_one_that_comes_while_the_first_is_under_way_is_not_placed_and_its_home_counts_it() -> None:
    made = machine()
    _, [start] = made.schedule(ONE)
    _, [again] = made.schedule(ONE)
    assert isinstance(again, core.Answer)
    assert not again.placed
    assert [r.unknown for r in again.refused] == [NodeID("?")]
    first = started(made, start)
    assert [p.instance for p in first.placed] == ["a-1"]
    _, [third] = made.schedule(ONE)
    assert third == first._replace(op=3)


def test_what_was_refused_or_only_reserved_may_be_asked_for_again() -> None:
    made = machine()
    _, [start] = made.schedule(ONE)
    assert started(made, start, "another home").refused
    _, [start] = made.schedule(ONE, reserve=True)
    assert started(made, start).placed
    _, [start] = made.schedule(ONE, reserve=True)
    assert isinstance(start, core.SendStart)


def test_an_instance_that_comes_back_over_other_partitions_is_no_repetition() -> None:
    made = machine()
    made.schedule(ONE)
    _, [start] = made.schedule(ONE, hops=2)
    assert isinstance(start, core.SendStart)


def test_no_more_are_remembered_than_were_meant_to_be() -> None:
    made = machine()
    for k in range(KEEP + 10):
        _, [start] = made.schedule([core.Wanted(InstanceID(f"a-{k}"), revision())])
        started(made, start)
    assert len(made.repeats) == KEEP


def test_what_is_under_way_is_remembered_however_much_is_answered_meanwhile() -> None:
    made = machine()
    made.schedule(ONE)
    for k in range(KEEP + 1):
        _, [start] = made.schedule([core.Wanted(InstanceID(f"b-{k}"), revision())])
        started(made, start)
    _, [again] = made.schedule(ONE)
    assert isinstance(again, core.Answer)
    assert [r.unknown for r in again.refused] == [NodeID("?")]
