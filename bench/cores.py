"""The control plane's cores without any socket, on this machine: decisions a second, and memory.

A decision is one instance that the node's own machine has admitted. Memory is what the process of a fresh Python
grows by, so that each figure is taken in a process of its own (`python -m bench.cores KIND`).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Protocol

from kserve_ext.core.cluster_mgr import ClusterMgrMachine
from kserve_ext.core.dispatch.facts import Instruction, Outcome, Place, SendGrant
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.dispatch.shard import Shard
from kserve_ext.core.facts import (
    Command,
    Instance,
    Member,
    Model,
    NodeStatus,
    Resources,
    Revision,
    Scale,
    View,
)
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.membership import MembershipMachine
from kserve_ext.core.node.admission import Ledger
from kserve_ext.core.node.facts import Order
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.core.node.slots import Slots
from kserve_ext.core.schedule.machine import ScheduleMachine, SendStart, Wanted

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


# --- memory


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def functions_of_nodes(count: int = 1000) -> object:
    """What all control functions know of so many nodes: one of each kind, and the controller."""
    agents = [node(k) for k in range(count)]
    before = resident_bytes()
    members = tuple(Member(FunctionID(a.node), "node", a.addr, 1) for a in agents)
    functions = tuple(
        Member(FunctionID(f"{kind}-0"), kind, "10.0.1.1:1", 1)
        for kind in ("dispatch", "schedule", "cluster_mgr")
    )
    controller = MembershipMachine(View(1, (*functions, *members)), 0.0)
    view = controller.view
    schedule, manager = ScheduleMachine(SCHEDULE), ClusterMgrMachine(FunctionID("cluster_mgr-0"))
    manager.view(view, 0.0)
    for agent in agents:
        status = agent.status()
        manager.update(status, 1, 0.0)
        schedule.partition.learn(status)
    home = Home(FunctionID("dispatch-0"), 1, lambda key: InstanceID(key))
    home.view([a.node for a in agents], {FunctionID("dispatch-0"): 1}, (), 0.0)
    print(resident_bytes() - before)
    return controller, schedule, manager, home


class _Request:
    """What a shard holds."""

    held_bytes = 0


def homes_of_instances(count: int = 10_000, each: int = 10) -> object:
    """Home and shard of so many ready instances, `each` of every revision, and a request in flight on each."""
    me, now = FunctionID("dispatch-0"), 1.0
    numbers = iter(range(1 << 30))
    nodes = [NodeID(f"node-{k:04d}") for k in range(210)]
    before = resident_bytes()
    shard: Shard[_Request] = Shard(1)
    shard.view(1, lambda key: me)
    homes: list[Home] = []
    for number in range(count // each):
        rev = revision(number)._replace(concurrency=1, scale=Scale(initial=0, target=1.0, utilization=1.0))
        home = Home(me, 1, lambda key: InstanceID(f"{key}-{next(numbers)}"))
        homes.append(home)
        home.view((), {}, (), now)  # nobody is to be asked what runs
        home.add(rev, True, (), now)
        home.view(nodes, {me: 1}, (), now)
        shard.know(rev, now)
        for _ in range(each):
            shard.submit(rev.key, _Request(), now)
        _serve(home, shard, rev, nodes, now)
    assert sum(h.revisions[key].fleet.ready for h in homes for key in h.revisions) == count
    assert sum(p.throttler.in_flight for p in shard.parts.values()) == count
    print(resident_bytes() - before)
    return homes, shard


def _serve(home: Home, shard: Shard[_Request], rev: Revision, nodes: list[NodeID], now: float) -> None:
    """Until nothing is left to say; instances are ready at once."""
    while due := shard.due(now):
        for _, demand in due:
            grant, out = home.demand(home.me, demand, now)
            if grant is not None:
                shard.grant(grant, now)
            shard.answered(rev.key, demand.seq, now)
            for i in [*out, *_started(home, rev, nodes, out, now)]:
                if isinstance(i, SendGrant):
                    shard.grant(i.grant, now)
            for _ in shard.drain(rev.key, now):
                pass


def _started(
    home: Home, rev: Revision, nodes: list[NodeID], instructions: list[Instruction], now: float
) -> list[Instruction]:
    out: list[Instruction] = []
    for _, ids in (item for i in instructions if isinstance(i, Place) for item in i.items):
        outcomes = [Outcome(name, nodes[k % len(nodes)]) for k, name in enumerate(ids)]
        out += home.placed({rev.key: outcomes}, now)
        for outcome in outcomes:
            fact = Instance(outcome.instance, rev.key, outcome.node, "ready", "10.0.0.1:80")
            out += home.observed(rev.key, outcome.node, (fact,), False, now)[1]
    return out


def agents_of_instances(count: int = 10_000, on: int = 210) -> object:
    """The agents of `on` nodes with so many instances."""
    agents = [node(k) for k in range(on)]
    rev = revision()
    before = resident_bytes()
    for number in range(count):
        order = Order(InstanceID(f"i{number}"), rev, 1, FunctionID("home"), "home:1")
        agents[number % on].start(order, 1.0)
    print(resident_bytes() - before)
    return agents


KINDS: Final[dict[str, Callable[[], object]]] = {
    "1,000 nodes, all control functions": functions_of_nodes,
    "10,000 instances, homes and shards": homes_of_instances,
    "10,000 instances, agents of 210 nodes": agents_of_instances,
}


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
    for kind in KINDS:
        command = [sys.executable, "-m", "bench.cores", kind]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        yield {
            "metric": f"memory: {kind}",
            "ours": round(int(said.stdout) / 2**20, 2),
            "peer": None,
            "peer_name": None,
            "unit": "MiB",
            "better": "lower",
            "conditions": "measured: growth of a process's resident memory, the real cores",
        }


if __name__ == "__main__":
    KINDS[sys.argv[1]]()
