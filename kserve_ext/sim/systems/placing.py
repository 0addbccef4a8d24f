"""Sending each request to a node, and there into an idle instance of its function or a new one: what task schedulers
have alike.

They scale nothing: an instance comes to be where a request finds none, and ends when it has been idle for KEEP_S or
another function needs its place. A node has so many places; a request takes one from when it is sent there to run
until it is answered. Subclasses decide which node, and which request is next where none is free.

As their papers have them they pay for decisions only, and a node begins with a start in no time. `paid`: each
message also takes the processor time of both ends, and each start that of its node's agent, by costs.py, as in ours.
"""

from __future__ import annotations

from collections.abc import Callable

from kserve_ext.sim import costs
from kserve_ext.sim.clock import Call, Core
from kserve_ext.sim.fleet import Fleet, Instance, Node, Request

KEEP_S = 60.0  # as long as the window by which the autoscaled systems scale down
SWEEP_S = 5.0


class Placing:
    name = ""

    def __init__(self, fleet: Fleet, *, paid: bool = False) -> None:
        self.fleet, self.clock, self.paid = fleet, fleet.clock, paid
        #: what each node's agent does
        self.agents = [Core(fleet.clock) for _ in fleet.nodes]
        self.taken = [0] * len(fleet.nodes)
        self._warm: list[dict[str, list[Instance]]] = [{} for _ in fleet.nodes]
        self.clock.every(SWEEP_S, self._sweep)

    def places(self, node: Node) -> int:
        return node.room - self.taken[node.number]

    def warm(self, node: Node, function: str) -> int:
        """Idle instances of it there."""
        return len(self._warm[node.number].get(function, ()))

    def run(self, request: Request, node: Node) -> None:
        """There must be a place."""
        self.taken[node.number] += 1
        self.fleet.count("decisions")
        idle = self._warm[node.number].get(request.function)
        if idle:
            self.fleet.begin(request, idle.pop())
            return
        self.start(request.function, node, lambda instance: self.fleet.begin(request, instance))

    def prepare(self, function: str, node: Node) -> None:
        """An instance without a request; there must be room."""
        self.taken[node.number] += 1
        self.start(function, node, self.idle)

    def idle(self, instance: Instance) -> None:
        number = instance.node.number
        self.taken[number] -= 1
        self._warm[number].setdefault(instance.function, []).append(instance)
        self.freed(instance.node)

    def freed(self, node: Node) -> None:
        """A place there is free."""

    def started(self, function: str, node: Node) -> None:
        """An instance of it is starting there."""

    def ended(self, instance: Instance) -> None:
        """It is no more."""

    def message(self, source: Core, to: Core, then: Call) -> None:
        """On its way from one process to another."""
        if not self.paid:
            self.fleet.hop(then)
            return
        source.spend(costs.RPC * 1e-6)
        self.fleet.hop(lambda: to.do(costs.RPC * 1e-6, then))

    def start(self, function: str, node: Node, ready: Callable[[Instance], None]) -> None:
        """Its place is taken already."""
        if not self.paid:
            self._start(function, node, ready)
            return
        begin = lambda: self._start(function, node, ready)  # noqa: E731
        self.agents[node.number].do(costs.seconds("start", rpc=False), begin)

    def _start(self, function: str, node: Node, ready: Callable[[Instance], None]) -> None:
        if not node.free:
            oldest = node.idle()
            assert oldest is not None, f"node {node.number} has no place"
            self._end(oldest)
        started = self.fleet.start(node, function, ready)
        assert started is not None, f"node {node.number} has admitted more than it has room for"
        self.started(function, node)

    def _end(self, instance: Instance) -> None:
        self._warm[instance.node.number][instance.function].remove(instance)
        self.fleet.end(instance)
        self.ended(instance)

    def _sweep(self) -> None:
        before = self.clock.now - KEEP_S
        for node in self.fleet.nodes:
            for instance in [i for i in node.instances if i.state == "idle" and i.since < before]:
                self._end(instance)
