"""The controller's machine: epochs only grow, predecessors never win, the dead leave, the restarted come back."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve_ext.core.facts import Kind, Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.membership import LOST_S, SILENT_S, MembershipMachine

NAMES = ["dispatch-0", "schedule-0", "node-0"]
KINDS: dict[str, Kind] = {"dispatch-0": "dispatch", "schedule-0": "schedule", "node-0": "node"}


def member(name: str, incarnation: int = 1) -> Member:
    return Member(FunctionID(name), KINDS[name], f"127.0.0.1:{incarnation}", incarnation)


class Controller(RuleBasedStateMachine):
    """Random joins, reports, losses, restarts of members and of the controller."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.machine = MembershipMachine(View(), self.now)
        self.highest = 0
        self.incarnations = dict.fromkeys(NAMES, 0)

    @rule(name=st.sampled_from(NAMES), back=st.integers(0, 2), ahead=st.integers(0, 5))
    def join(self, name: str, back: int, ahead: int) -> None:
        incarnation = max(1, self.incarnations[name] + 1 - back)
        self.machine.join(member(name, incarnation), self.highest + ahead, incarnation, self.now)
        self.incarnations[name] = max(self.incarnations[name], incarnation)

    @rule(name=st.sampled_from(NAMES))
    def report(self, name: str) -> None:
        i = self.incarnations[name]
        known = self.machine.report(FunctionID(name), i, self.machine.epoch, i, self.now)
        found = self.machine.view.member(name)
        assert known == (found is not None and found.incarnation == i)

    @rule(name=st.sampled_from(NAMES), back=st.integers(0, 1))
    def lost(self, name: str, back: int) -> None:
        self.machine.lost(FunctionID(name), self.incarnations[name] - back, self.now)

    @rule(seconds=st.sampled_from([0.1, LOST_S, 1.0, SILENT_S]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        for push in self.machine.tick(self.now):
            self.machine.pushed(push.member.id, self.now)
            self.machine.acked(push.member.id, push.view.epoch)

    @rule()
    def controller_dies(self) -> None:
        self.machine = MembershipMachine(self.machine.view, self.now)

    @invariant()
    def epochs_only_grow_and_a_predecessor_never_replaces(self) -> None:
        assert self.machine.epoch >= self.highest
        self.highest = self.machine.epoch
        for m in self.machine.view.members:
            assert m.incarnation <= self.incarnations[m.id]
        ids = [m.id for m in self.machine.view.members]
        assert ids == sorted(set(ids))


Controller.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestController = Controller.TestCase


def test_a_lost_connection_counts_only_when_it_is_the_one_last_heard_on() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("dispatch-0", 1), 0, connection=1, now=0.0)
    machine.join(member("dispatch-0", 2), 0, connection=2, now=0.1)
    machine.lost(FunctionID("dispatch-0"), 1, 0.2)
    machine.tick(0.2 + LOST_S)
    assert machine.view.member("dispatch-0") is not None
    machine.lost(FunctionID("dispatch-0"), 2, 0.6)
    pushes = machine.tick(0.61 + LOST_S)
    assert machine.view.members == ()
    assert pushes == []
    assert "connection was lost" in machine.removed[-1].reason


def test_a_silent_function_is_out_and_a_silent_node_is_clustermgrs_business() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("schedule-0"), 0, 1, 0.0)
    machine.join(member("node-0"), 0, 2, 0.0)
    pushes = machine.tick(SILENT_S)
    assert [m.id for m in machine.view.members] == ["node-0"]
    assert [p.member.id for p in pushes] == ["node-0"]
    machine.leave(FunctionID("node-0"), 1, "cluster-mgr-0: silent", SILENT_S)
    assert machine.view.members == ()


def test_a_new_controller_starts_above_the_stored_and_the_reported_epoch() -> None:
    machine = MembershipMachine(View(41, (member("dispatch-0"),)), 0.0)
    assert machine.epoch == 42
    assert machine.view.member("dispatch-0") is not None
    machine.join(member("schedule-0"), epoch=99, connection=1, now=0.1)
    assert machine.epoch == 100


def test_an_unacknowledged_view_is_pushed_again() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("dispatch-0"), 0, 1, 0.0)
    machine.pushed(FunctionID("dispatch-0"), 0.0)
    assert machine.tick(0.1) == []
    assert [p.member.id for p in machine.tick(0.6)] == ["dispatch-0"]
    machine.acked(FunctionID("dispatch-0"), machine.epoch)
    assert machine.consistent()
    assert machine.tick(2.0) == []


def test_an_application_for_scale_out_is_refused_with_the_remedy() -> None:
    machine = MembershipMachine(View(), 0.0)
    granted, reason = machine.apply("schedule", 12.0)
    assert granted == 0
    assert "galaxy up" in reason
