"""A ClusterMgr's machine: heartbeats, what is passed on, who is down, and nodes that change hands."""

from __future__ import annotations

from kserve_ext.core.cluster_mgr import (
    LOST_S,
    SILENT_S,
    ClusterMgrMachine,
    Instruction,
    TellController,
    TellOwner,
)
from kserve_ext.core.facts import Member, NodeStatus, Resources, View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.partitions import divide

ME = FunctionID("cluster-mgr-0")
VIEW = View(
    3,
    (
        Member(ME, "cluster_mgr", "a:1", 1),
        Member(FunctionID("node-0"), "node", "a:2", 1),
        Member(FunctionID("schedule-0"), "schedule", "a:3", 1),
    ),
)


def status(seq: int, cpu: int = 1000, incarnation: int = 1) -> NodeStatus:
    return NodeStatus(NodeID("node-0"), "a:2", incarnation, seq, Resources(4000), Resources(cpu))


def machine() -> ClusterMgrMachine:
    m = ClusterMgrMachine(ME)
    m.view(VIEW, 0.0)
    return m


def tick(m: ClusterMgrMachine, begin: float, end: float) -> list[Instruction]:
    """Ticks as often as the process does, up to and with `end`."""
    return [i for k in range(1, round((end - begin) * 10) + 1) for i in m.tick(begin + k / 10)]


def test_a_change_is_told_at_once_and_sameness_once_a_second() -> None:
    m = machine()
    assert m.update(status(1), 1, 0.0) == [TellOwner(FunctionID("schedule-0"), status(1))]
    assert m.update(status(2), 1, 0.5) == []
    assert m.update(status(3, cpu=500), 1, 0.6) == [TellOwner(FunctionID("schedule-0"), status(3, cpu=500))]
    assert m.update(status(4, cpu=500), 1, 1.7) == [TellOwner(FunctionID("schedule-0"), status(4, cpu=500))]


def test_a_late_update_is_dropped() -> None:
    m = machine()
    m.update(status(5), 1, 0.0)
    assert m.update(status(4, cpu=1), 1, 0.1) == []
    assert m.nodes()[0][0] == status(5)


def test_a_silent_node_and_one_whose_connection_is_lost_are_down() -> None:
    for connection_lost, at in ((False, SILENT_S), (True, LOST_S)):
        m = machine()
        m.update(status(1), 7, 0.0)
        if connection_lost:
            m.lost(7, 0.0)
        assert tick(m, 0.0, at - 0.1) == []
        told, owner = m.tick(at)
        assert isinstance(told, TellController)
        assert isinstance(owner, TellOwner)
        assert owner.down == told.reason != ""
        m.view(View(4, tuple(x for x in VIEW.members if x.id != "node-0")), at)
        assert tick(m, at, at + 9) == []


def test_a_dead_node_is_reported_until_the_view_is_without_it() -> None:
    m = machine()
    m.update(status(1), 7, 0.0)
    told = [i for i in tick(m, 0.0, 3 * SILENT_S + 0.1) if isinstance(i, TellController)]
    assert len(told) == 3


def test_a_node_back_on_a_new_connection_is_not_down() -> None:
    m = machine()
    m.update(status(1), 7, 0.0)
    m.lost(7, 0.1)
    m.update(status(1, incarnation=2), 8, 0.5)
    assert [i for i in tick(m, 0.5, 2.0) if isinstance(i, TellController)] == []


def test_time_in_which_this_process_did_not_run_is_nobodys_silence() -> None:
    m = machine()
    m.update(status(1), 7, 0.0)
    m.lost(7, 0.1)
    assert m.tick(60.0) == []
    assert tick(m, 60.0, 60.0 + LOST_S + 0.2) != []


def test_a_node_that_never_spoke_to_its_new_clustermgr_is_reported() -> None:
    m = machine()
    assert tick(m, 0.0, SILENT_S - 0.1) == []
    (told,) = m.tick(SILENT_S)
    assert isinstance(told, TellController)
    assert "heard nothing" in told.reason


def test_a_node_that_spoke_under_an_older_view_and_moved_on_is_not_dead() -> None:
    m = machine()
    other = Member(FunctionID("cluster-mgr-1"), "cluster_mgr", "a:9", 1)
    nodes = tuple(Member(FunctionID(f"node-{k}"), "node", f"b:{k}", 1) for k in range(20))
    m.view(View(4, (*VIEW.members[:1], other, *nodes, VIEW.members[2])), 0.0)
    for k in range(20):
        m.update(NodeStatus(NodeID(f"node-{k}"), "b", 1, 1, Resources(1), Resources(1)), k, 0.1)
    dead = {str(i.status.node) for i in tick(m, 0.1, SILENT_S + 0.2) if isinstance(i, TellController)}
    shares = divide([NodeID(n.id) for n in nodes], [ME, other.id])
    ours = {str(node) for node, manager in shares.items() if manager == ME}
    assert dead == ours
    assert 0 < len(ours) < 20


def test_nodes_of_another_clustermgr_are_forgotten() -> None:
    m = machine()
    m.update(status(1), 1, 0.0)
    gone = View(4, tuple(x for x in VIEW.members if x.id != ME))
    m.view(gone, 1.0)
    assert m.nodes() == []
    assert tick(m, 1.0, 9.0) == []
