"""Which instances a peer may dial, and when one is taken for gone that its node doesn't name."""

from __future__ import annotations

from kserve_ext.core.dispatch.fleet import SUSPECT_S, Fleet
from kserve_ext.core.facts import Instance, InstanceState
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey

NODE = NodeID("node-0")


def fact(name: str, state: InstanceState, addr: str = "") -> Instance:
    return Instance(InstanceID(name), RevisionKey("ns/r"), NODE, state, addr, generation=7)


def listening(fleet: Fleet) -> list[tuple[str, str]]:
    return [(k.id, k.listens) for k in fleet.listening(0.0)]


def test_an_instance_is_dialled_from_the_moment_at_which_it_listens_until_it_stops() -> None:
    fleet = Fleet()
    fleet.asked(InstanceID("a"), 0.0)
    assert listening(fleet) == []
    fleet.observe([fact("a", "starting")], NODE, False, 0.0)
    assert listening(fleet) == [], "nobody knows where"
    fleet.observe([fact("a", "starting", "h:1")], NODE, False, 0.0)
    assert listening(fleet) == [("a", "h:1")]
    assert fleet.usable(0.0) == [], "no lease names it yet"
    fleet.observe([fact("a", "ready", "h:1"), fact("b", "starting", "h:2")], NODE, False, 0.0)
    assert listening(fleet) == [("a", "h:1"), ("b", "h:2")]
    fleet.doom(fleet.known[InstanceID("b")], "scale-down", 0.0)
    fleet.observe([fact("a", "draining", "h:1")], NODE, False, 0.0)
    assert listening(fleet) == []


A, B = InstanceID("a"), InstanceID("b")


def started(fleet: Fleet, instance: InstanceID, at: float) -> None:
    fleet.asked(instance, at)
    fleet.placed(instance, NODE, at)


def test_what_a_node_said_long_ago_ends_nothing_it_is_asked() -> None:
    """Found by chaos: a report that came once more, 3 s late, made a home start another beyond its most."""
    fleet = Fleet()
    started(fleet, A, 10.0)
    fleet.observe([fact("a", "ready", "h:1")], NODE, False, 10.2)
    change = fleet.observe([], NODE, True, 13.0)
    assert change.news
    assert not change.ended
    assert fleet.usable(13.0) == [A], "its requests go on meanwhile"
    assert fleet.doubtful(13.0) == {NODE}
    fleet.observe([fact("a", "ready", "h:1")], NODE, True, 13.1, asked_at=13.0)
    assert fleet.doubtful(13.1) == set()
    fleet.observe([], NODE, True, 20.0)
    change = fleet.observe([], NODE, True, 20.1, asked_at=20.0)
    assert [known.id for known, _ in change.ended] == [A]
    fleet.check()


def test_an_answer_ends_nothing_that_was_started_since_it_was_asked_for() -> None:
    fleet = Fleet()
    started(fleet, A, 1.0)
    started(fleet, B, 2.5)
    change = fleet.observe([], NODE, True, 3.0, asked_at=2.0)
    assert [known.id for known, _ in change.ended] == [A]
    assert list(fleet.known) == [B]
    fleet.check()


def test_one_that_nobody_reached_and_that_is_kept_after_all_is_asked_about_and_used_again() -> None:
    fleet = Fleet()
    started(fleet, A, 0.0)
    started(fleet, B, 0.0)
    fleet.observe([fact("a", "ready", "h:1"), fact("b", "ready", "h:2")], NODE, False, 0.1)
    fleet.broken(A, 1.0)
    fleet.doom(fleet.known[A], "scale-down", 1.1)
    assert fleet.doubtful(1.1) == set()
    assert fleet.keep(1) == 1
    assert fleet.usable(1.2) == [B]
    assert fleet.doubtful(1.2) == {NODE}
    assert fleet.usable(1.0 + SUSPECT_S) == [A, B]
    fleet.check()
