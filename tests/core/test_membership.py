"""The controller's machine: epochs only grow, predecessors never win, the dead leave, the restarted come back."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve_ext.core.dispatch.facts import SEEN_TTL_S
from kserve_ext.core.dispatch.fleet import NODE_GRACE_S
from kserve_ext.core.facts import UNKNOWN, Kind, Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.membership import GATHER_S, LOST_S, SILENT_S, MembershipMachine, Push
from kserve_ext.core.partitions import moved, owners

NAMES = ["dispatch-0", "schedule-0", "node-0"]
KINDS: dict[str, Kind] = {"dispatch-0": "dispatch", "schedule-0": "schedule", "node-0": "node"}


def member(name: str, incarnation: int = 1) -> Member:
    return Member(FunctionID(name), KINDS[name], f"127.0.0.1:{incarnation}", incarnation)


def tick(machine: MembershipMachine, begin: float, end: float, step: float = 0.1) -> list[Push]:
    """Ticks as often as the controller's process does; what was to be pushed at the last of them that pushed."""
    out: list[Push] = []
    for k in range(1, round((end - begin) / step) + 1):
        out = machine.tick(begin + k * step) or out
    return out


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
        seen = self.highest + ahead
        pushes = self.machine.join(member(name, incarnation), seen, incarnation, self.now)
        self.publish(pushes)
        found = self.machine.view.member(name)
        assert found is not None
        if found.incarnation == incarnation:
            assert self.machine.epoch >= seen
        self.incarnations[name] = max(self.incarnations[name], incarnation)

    @rule(name=st.sampled_from(NAMES))
    def report(self, name: str) -> None:
        i = self.incarnations[name]
        told = self.machine.epoch - (self.machine.gathering(self.now) > 0)  # nobody has been told of this one
        known = self.machine.report(FunctionID(name), i, told, i, self.now)
        found = self.machine.view.member(name)
        assert known == (found is not None and found.incarnation == i)

    @rule(name=st.sampled_from(NAMES), back=st.integers(0, 1))
    def lost(self, name: str, back: int) -> None:
        self.machine.lost(FunctionID(name), self.incarnations[name] - back, self.now)

    @rule(ticks=st.sampled_from([1, 3, 10, 35]))
    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now += 0.1
            self.publish(self.machine.tick(self.now))

    @rule(seconds=st.sampled_from([1.0, SILENT_S, 60.0]))
    def controller_does_not_run(self, seconds: float) -> None:
        before = self.machine.view.members
        self.machine.tick(self.now)
        alive = self.machine.view.members
        self.now += seconds
        self.machine.tick(self.now)
        assert self.machine.view.members == alive, (before, alive)

    @rule(name=st.sampled_from(NAMES))
    def clustermgr_or_a_predecessor_says_leave(self, name: str) -> None:
        before = self.machine.view.member(name)
        self.machine.leave(FunctionID(name), self.incarnations[name] - 1, "old news", self.now)
        if before is not None and before.incarnation == self.incarnations[name]:
            assert self.machine.view.member(name) == before

    def publish(self, pushes: list[Push]) -> None:
        for push in pushes:
            assert push.view.epoch == self.machine.epoch
            assert push.view.member(push.member.id) == push.member
            assert not self.machine.gathering(self.now)
            self.machine.pushed(push.member.id, self.now)
            self.machine.acked(push.member.id, push.view.epoch)

    @rule(store_lost=st.booleans())
    def controller_dies(self, store_lost: bool) -> None:
        if store_lost:
            self.machine = MembershipMachine(View(), self.now)
            self.highest = 0  # until somebody who knows better joins
        else:
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
    tick(machine, 0.1, 0.2 + LOST_S)
    assert machine.view.member("dispatch-0") is not None
    machine.lost(FunctionID("dispatch-0"), 2, 0.6)
    tick(machine, 0.5, 0.7 + LOST_S)
    assert machine.view.members == ()
    assert machine.tick(1.1) == []
    assert "connection was lost" in machine.removed[-1].reason


def test_a_silent_function_is_out_and_a_silent_node_is_clustermgrs_business() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("schedule-0"), 0, 1, 0.0)
    machine.join(member("node-0"), 0, 2, 0.0)
    pushes = tick(machine, 0.0, SILENT_S + 0.1)
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


def test_a_stored_member_at_whose_address_nobody_listens_is_lost() -> None:
    machine = MembershipMachine(View(41, (member("dispatch-0"), member("schedule-0"))), 0.0)
    machine.join(member("schedule-0"), 41, 1, 0.1)
    for name in ("dispatch-0", "schedule-0"):
        machine.unreachable(FunctionID(name), 1, 0.1)
    tick(machine, 0.1, 0.2 + LOST_S)
    assert [m.id for m in machine.view.members] == [
        "schedule-0"
    ]  # it has been heard of: its connection counts


def test_an_unacknowledged_view_is_pushed_again() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("dispatch-0"), 0, 1, 0.0)
    machine.pushed(FunctionID("dispatch-0"), 0.0)
    assert machine.tick(0.1) == []
    assert [p.member.id for p in machine.tick(0.6)] == ["dispatch-0"]
    machine.acked(FunctionID("dispatch-0"), machine.epoch)
    assert machine.consistent()
    assert tick(machine, 0.6, 2.0) == []


def test_a_member_that_reports_an_older_view_gets_it_again() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("dispatch-0"), 0, 1, 0.0)
    machine.acked(FunctionID("dispatch-0"), machine.epoch)  # taken for granted, but its reply was lost
    machine.pushed(FunctionID("dispatch-0"), 0.0)
    assert machine.report(FunctionID("dispatch-0"), 1, 0, 1, 0.6)
    assert [p.view.epoch for p in machine.tick(0.7)] == [machine.epoch]


def test_time_in_which_the_controller_did_not_run_is_nobodys_silence() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("dispatch-0"), 0, 1, 0.0)
    machine.tick(60.0)
    assert machine.view.member("dispatch-0") is not None
    tick(machine, 60.0, 60.0 + SILENT_S + 0.2)
    assert machine.view.members == ()


def test_a_controller_whose_store_is_lost_gathers_members_before_it_publishes() -> None:
    machine = MembershipMachine(View(), 0.0)
    assert machine.join(member("dispatch-0"), epoch=50, connection=1, now=0.1) == []
    assert machine.gathering(0.1)
    assert machine.join(member("schedule-0"), epoch=50, connection=2, now=0.9) == []
    pushes = tick(machine, 0.9, GATHER_S + 0.2)
    assert {p.member.id for p in pushes} == {"dispatch-0", "schedule-0"}
    assert {len(p.view.members) for p in pushes} == {2}
    assert machine.epoch > 50


def test_a_fresh_cluster_waits_for_nobody() -> None:
    machine = MembershipMachine(View(), 0.0)
    assert len(machine.join(member("dispatch-0"), epoch=0, connection=1, now=0.1)) == 1
    assert not machine.gathering(0.1)


def test_a_draining_function_stays_a_member_and_is_given_no_work() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("schedule-0"), 0, 1, 0.0)
    epoch = machine.epoch
    pushes = machine.drain(FunctionID("schedule-0"), 0.1)
    assert [p.view.epoch for p in pushes] == [epoch + 1]
    assert machine.view.of("schedule") == ()
    assert machine.view.member("schedule-0") == machine.member(FunctionID("schedule-0"))
    assert machine.drain(FunctionID("schedule-0"), 0.2) == []
    machine.join(member("schedule-0"), epoch + 1, 2, 0.3)  # its connection broke: it doesn't forget
    assert machine.view.of("schedule") == ()
    assert MembershipMachine(machine.view, 1.0).view.of("schedule") == ()
    machine.join(member("schedule-0", 2), 0, 3, 0.4)
    assert len(machine.view.of("schedule")) == 1


def test_who_has_which_node_outlives_the_controller_and_only_what_must_move_moves() -> None:
    def joins(machine: MembershipMachine, name: str, kind: Kind) -> None:
        machine.join(Member(FunctionID(name), kind, f"{name}:1", 1), 0, 1, 0.0)

    machine = MembershipMachine(View(), 0.0)
    for k in range(9):
        joins(machine, f"node-{k}", "node")
    for name in ("schedule-0", "schedule-1"):
        joins(machine, name, "schedule")
        before = owners(machine.view, "schedule")
    again = MembershipMachine(machine.view, 5.0)
    assert owners(again.view, "schedule") == before
    joins(again, "schedule-2", "schedule")
    after = owners(again.view, "schedule")
    assert {after[node] for node in moved(before, after)} == {"schedule-2"}
    assert len(moved(before, after)) == 3
    again.drain(FunctionID("schedule-2"), 6.0)
    assert set(owners(again.view, "schedule").values()) == {"schedule-0", "schedule-1"}


def test_one_whose_store_was_lost_gives_no_epoch_a_second_meaning() -> None:
    """It led up to 7; another then published 8, and that is lost: members that have it must hear a newer one."""
    known = View(7, (member("dispatch-0"), member("schedule-0")))
    machine = MembershipMachine(known, 0.0, lost=True)
    assert machine.epoch == 8
    assert tick(machine, 0.0, 0.3) == [], "nobody is told before members were heard"
    assert not machine.report(FunctionID("dispatch-0"), 1, 8, 1, 0.3), (
        "it is to join again, and say what it knows"
    )
    assert machine.join(member("dispatch-0"), 8, 1, 0.3) == []
    assert machine.join(member("schedule-0"), 9, 2, 0.4) == []
    pushes = tick(machine, 0.4, 0.4 + GATHER_S)
    assert {p.view.epoch for p in pushes} == {machine.epoch}
    assert machine.epoch > 9


def test_once_its_view_is_given_out_who_reports_it_has_it() -> None:
    machine = MembershipMachine(View(7, (member("dispatch-0"),)), 0.0, lost=True)
    machine.report(FunctionID("dispatch-0"), 1, 7, 1, 1.0)
    assert tick(machine, 1.0, 1.0 + GATHER_S)
    assert machine.report(FunctionID("dispatch-0"), 1, 8, 1, 1.0 + GATHER_S)


def test_the_view_names_who_left_for_as_long_as_its_process_may_live() -> None:
    def left(machine: MembershipMachine) -> dict[str, float]:
        return {name: age_s for name, _, _, age_s, _ in machine.view.left}

    machine = MembershipMachine(View(), 0.0)
    for name in NAMES:
        machine.join(member(name), 0, 1, 0.0)
    for name in NAMES:
        machine.leave(FunctionID(name), 1, "it is over", 1.0)
    assert left(machine) == {"dispatch-0": 0.0, "node-0": 0.0}, (
        "of others nobody has leases, and nothing runs there"
    )
    machine.join(member("schedule-0", 2), 0, 2, 2.0 + NODE_GRACE_S)
    assert left(machine) == {"dispatch-0": 1.0 + NODE_GRACE_S}
    machine = MembershipMachine(View(), 0.0)
    for name in NAMES:
        machine.join(member(name), 0, 1, 0.0)
        machine.leave(FunctionID(name), 1, "it is over", 1.0)
    machine.join(member("node-0", 2), 0, 2, 3.0)
    assert left(machine) == {"dispatch-0": 2.0}
    again = MembershipMachine(machine.view, 100.0)
    assert left(again) == {"dispatch-0": 2.0}, "its own clock says nothing of the time in between"
    again.join(member("node-0", 3), 0, 3, 98.0 + SEEN_TTL_S)
    assert left(again) == {}
    machine.join(member("dispatch-0", 2), 0, 3, 4.0)
    assert left(machine) == {}


def test_one_whose_store_is_behind_says_that_it_does_not_know_who_left() -> None:
    machine = MembershipMachine(View(), 0.0)
    machine.join(member("dispatch-0"), 7, 1, 0.0)
    assert [x.id for x in machine.view.left] == [UNKNOWN]
    assert MembershipMachine(View(), 0.0).view.left == ()
