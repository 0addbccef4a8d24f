"""Decisions a second of the cores without any socket, on this machine.

A decision is one instance that its node has admitted; here by a count of what is free, then by its own machine.
What sockets and processes cost besides is measured by control_sockets.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final, Protocol

from kserve_ext.core.facts import (
    Command,
    Model,
    NodeStatus,
    Resources,
    Revision,
    Scale,
)
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.node.admission import Ledger
from kserve_ext.core.node.facts import Order
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.core.node.slots import Slots
from kserve_ext.core.schedule.facts import SendStart, Wanted
from kserve_ext.core.schedule.machine import ScheduleMachine

NEEDS: Final = Resources(cpu_milli=100, memory_mib=64)
CAPACITY: Final = Resources(cpu_milli=10_000_000, memory_mib=10_000_000)
SECONDS: Final = 1.0
ROUNDS: Final = 3
TOLD_S: Final = 2.0
REVISIONS: Final = 100
EACH: Final = 100  # instances of a node
SCHEDULE: Final = FunctionID("schedule-0")


def revision(number: int = 0) -> Revision:
    return Revision(
        RevisionKey(f"ns/r{number}"), f"ns/s{number}", 1, Command(("true",)), Model(), NEEDS, Scale()
    )


def node(number: int) -> NodeMachine:
    ledger = Ledger(CAPACITY)
    return NodeMachine(NodeID(f"node-{number:04d}"), f"10.0.0.{number}:7", 1, ledger, Slots(ledger, 0))


# --- decisions


class Nodes(Protocol):
    """A partition's, by name: `start` admits an instance and says what is free now."""

    names: list[NodeID]

    def status(self, name: NodeID) -> NodeStatus: ...

    def start(self, order: SendStart, now: float) -> NodeStatus: ...

    def admitted(self) -> int: ...


class Ledgers:
    """Nodes that only count: what is measured with them is the Schedule machine."""

    def __init__(self, count: int) -> None:
        made = (node(number).status() for number in range(count))
        self._statuses = {status.node: status for status in made}
        self.names = list(self._statuses)

    def status(self, name: NodeID) -> NodeStatus:
        return self._statuses[name]

    def start(self, order: SendStart, now: float) -> NodeStatus:
        last = self._statuses[order.node]
        free = last.free.minus(order.revision.needs)
        self._statuses[order.node] = last._replace(seq=last.seq + 1, free=free, instances=last.instances + 1)
        return self._statuses[order.node]

    def admitted(self) -> int:
        return sum(status.instances for status in self._statuses.values())


class Agents:
    """The nodes' own machines."""

    def __init__(self, count: int) -> None:
        self._agents = {agent.node: agent for agent in map(node, range(count))}
        self.names = list(self._agents)

    def status(self, name: NodeID) -> NodeStatus:
        return self._agents[name].status()

    def start(self, order: SendStart, now: float) -> NodeStatus:
        agent = self._agents[order.node]
        verdict, _ = agent.start(Order(order.instance, order.revision, 1, FunctionID("home"), "home:1"), now)
        assert not verdict.reason, verdict.reason
        return agent.status()

    def admitted(self) -> int:
        return sum(agent.admitted_total for agent in self._agents.values())


def decisions_per_s(make: Callable[[int], Nodes], nodes: int, count: int) -> float:
    """One Schedule machine and all nodes of its partition; the best of ROUNDS."""
    return max(_decisions(make(nodes), count) for _ in range(ROUNDS))


def _decisions(nodes: Nodes, count: int) -> float:
    """For SECONDS, or until nodes have EACH in the mean."""
    machine, most = ScheduleMachine(SCHEDULE), EACH * len(nodes.names)
    machine.view(set(nodes.names), {SCHEDULE})
    revisions, number, told_at = [revision(k) for k in range(REVISIONS)], 0, -TOLD_S
    gc.collect()
    gc.disable()
    began = perf_counter()
    try:
        while (now := perf_counter() - began) < SECONDS and number < most:
            if now - told_at >= TOLD_S:  # by their ClusterMgr function
                told_at = now
                for name in nodes.names:
                    machine.partition.learn(nodes.status(name), now)
            wanted_of = revisions[number // count % REVISIONS]
            wanted = [Wanted(InstanceID(f"i{number + k}"), wanted_of) for k in range(count)]
            number += count
            _, out = machine.schedule(wanted, now=now)
            for i in out:
                assert isinstance(i, SendStart), i
                machine.started(i.op, i.instance, i.node, i.addr, None, nodes.start(i, now))
        seconds = perf_counter() - began
    finally:
        gc.enable()
    assert nodes.admitted() == number == machine.placed_total
    return number / seconds


def rows() -> Iterator[dict[str, Any]]:
    """Of results (record.py)."""
    cases: tuple[tuple[str, Callable[[int], Nodes], tuple[int, ...]], ...] = (
        ("the core of one Schedule function", Ledgers, (6, 210, 2000)),
        ("the same with the nodes' own machines", Agents, (210, 2000)),
    )
    for what, make, sizes in cases:
        for nodes in sizes:
            for count in (1, 16):
                yield {
                    "metric": f"decisions/s: {what}, {nodes} nodes, count {count}",
                    "ours": round(decisions_per_s(make, nodes, count)),
                    "peer": 20_000,
                    "peer_name": "published, of the whole cluster",
                    "unit": "1/s",
                    "better": "higher",
                    "conditions": f"measured in one process, no sockets; {REVISIONS} revisions",
                }
