"""Which instances a peer may dial: those that may be used, and those that listen while they load."""

from __future__ import annotations

from kserve_ext.core.dispatch.fleet import Fleet
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
