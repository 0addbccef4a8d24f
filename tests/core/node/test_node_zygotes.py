"""Zygotes are kept ready for the runtimes of known revisions, before any start, and come back when there is room."""

from __future__ import annotations

from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import NodeID
from kserve_ext.core.node.admission import Ledger
from kserve_ext.core.node.facts import StartZygote
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.core.node.slots import Slots


def machine(memory_mib: int = 4096) -> NodeMachine:
    ledger = Ledger(Resources(4000, memory_mib), ())
    return NodeMachine(NodeID("node-0"), "h:1", 1, ledger, Slots(ledger, 1024))


def test_a_known_runtime_gets_its_zygote_once() -> None:
    node = machine()
    assert node.wants(["r"], 1.0) == [StartZygote("r")]
    assert node.wants(["r"], 2.0) == []
    assert node.tick(3.0) == []
    node.zygote_ready("r")
    assert node.status().slots == (("r", 1),)


def test_it_waits_for_room_and_starts_with_the_next_tick_that_has_some() -> None:
    node = machine(1024)
    node.ledger.admit("i", Resources(0, 512))
    assert node.wants(["r"], 1.0) == []
    assert node.tick(2.0) == []
    node.ledger.release("i")
    assert node.tick(3.0) == [StartZygote("r")]


def test_a_dead_one_backs_off() -> None:
    node = machine()
    node.wants(["r"], 1.0)
    node.zygote_died("r", 1.0)
    assert node.tick(1.1) == []
    assert node.tick(9.0) == [StartZygote("r")]
