"""Ray (OSDI '18): bottom-up. A task goes to the scheduler of its own node, and from there to a global one when full.

The driver of a function is on one node; its tasks are scheduled there as long as there are places. The global
scheduler sends what is left to the node with the shortest queue by the last heartbeats, which are old by then; a node
that has become full since sends a task on, and after SPILLS times queues it.

A driver asks for its tasks on its own node, which takes no message. Where messages are `paid` for, requests come to a
front somewhere first, as those of every other system here do, and it passes them on to the driver.

RayActors is Ray 2, where what is to stay is an actor: its process is created by way of one global service (GCS).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from zlib import crc32

from kserve_ext.sim.clock import Core
from kserve_ext.sim.fleet import Fleet, Instance, Node, Request
from kserve_ext.sim.systems.placing import Placing

SPILLS = 2


@dataclass(frozen=True)
class Rates:
    """Local: 1.8 million empty tasks a second on 100 nodes, as its authors report; the rest is ours."""

    local_s: float = 1 / 18_000
    global_s: float = 1 / 18_000
    heartbeat_s: float = 0.1


class Ray(Placing):
    def __init__(
        self, fleet: Fleet, rates: Rates = Rates(), name: str = "ray", *, paid: bool = False
    ) -> None:
        super().__init__(fleet, paid=paid)
        self.name, self.rates = name, rates
        self._local = self.agents
        self._global, self._front = Core(self.clock), Core(self.clock)
        self._queues: list[deque[Request]] = [deque() for _ in fleet.nodes]
        self._heard = [0] * len(fleet.nodes)  # tasks that run and wait at each node, by its last heartbeat
        self.clock.every(rates.heartbeat_s, self._heartbeat)

    def arrive(self, request: Request) -> None:
        node = self.fleet.nodes[crc32(request.function.encode()) % len(self.fleet.nodes)]
        if self.paid:
            self.message(self._front, self._local[node.number], partial(self.submit, request, node))
        else:
            self.submit(request, node)

    def submit(self, request: Request, node: Node, spills: int = 0) -> None:
        self._local[node.number].do(self.rates.local_s, partial(self._locally, request, node, spills))

    def _locally(self, request: Request, node: Node, spills: int) -> None:
        if self.places(node) > 0 and not self._queues[node.number]:
            self.run(request, node)
        elif spills >= SPILLS:
            self._queues[node.number].append(request)
        else:
            self.fleet.count("spilled")
            spilled = partial(self._globally, request, spills)
            here = self._local[node.number]
            self.message(here, self._global, lambda: self._global.do(self.rates.global_s, spilled))

    def _globally(self, request: Request, spills: int) -> None:
        least = min(self._heard)
        number = self.fleet.rng.choice([n for n, load in enumerate(self._heard) if load == least])
        there = partial(self.submit, request, self.fleet.nodes[number], spills + 1)
        self.message(self._global, self._local[number], there)

    def _heartbeat(self) -> None:
        self.fleet.count("messages", len(self.fleet.nodes))
        self._heard = [taken + len(queue) for taken, queue in zip(self.taken, self._queues, strict=True)]

    def freed(self, node: Node) -> None:
        queue = self._queues[node.number]
        while queue and self.places(node) > 0:
            self.run(queue.popleft(), node)


class RayActors(Ray):
    """550.7 actors a second on 64 nodes is what Ray's own release test keeps (many_actors.json, 10,000 actors)."""

    def __init__(self, fleet: Fleet, actors_per_s: float = 550.7, name: str = "ray-actors") -> None:
        super().__init__(fleet, name=name)
        self._create_s = 1 / actors_per_s
        self._gcs = Core(self.clock)

    def start(self, function: str, node: Node, ready: Callable[[Instance], None]) -> None:
        self._gcs.do(self._create_s, partial(super().start, function, node, ready))
