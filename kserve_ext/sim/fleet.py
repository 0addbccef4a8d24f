"""What every simulated system has alike: requests, nodes with room for instances, and the time that a start takes.

Systems differ in who decides what, from which knowledge and how late; here is only what is so whoever decides. A node
has room for so many instances; an instance is of one function and serves one request at a time; one that is idle may
be ended to make room. Nothing here decides anything. Every fact that a result is made of is counted here, so that no
system counts for itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from kserve_ext.sim.clock import Call, Clock
from kserve_ext.sim.traces import Arrival


@dataclass(slots=True, eq=False)
class Request:
    number: int
    function: str
    at: float
    seconds: float  # of work
    began: float | None = None
    ended: float | None = None
    refused: bool = False

    @property
    def latency(self) -> float:
        """Scheduling latency: response time less execution time."""
        if self.began is None:
            raise ValueError(f"request {self.number} has not begun")
        return self.began - self.at


@dataclass(slots=True, eq=False)
class Instance:
    function: str
    node: Node
    state: Literal["starting", "idle", "busy", "gone"] = "starting"
    since: float = 0.0  # in that state
    request: Request | None = None


@dataclass(slots=True, eq=False)
class Node:
    number: int
    room: int
    instances: list[Instance] = field(default_factory=list)

    @property
    def free(self) -> int:
        return self.room - len(self.instances)

    def idle(self, function: str = "") -> Instance | None:
        """Of that function; of any: the one that has been idle for longest."""
        found = [i for i in self.instances if i.state == "idle" and function in ("", i.function)]
        return min(found, key=lambda i: i.since, default=None)


@dataclass(frozen=True)
class World:
    """Of one run. Times in seconds."""

    nodes: int = 210
    room: int = 100
    start_s: float = 0.5  # from admission to ready, when it is alone
    parallel_starts: int = 10  # of one node; more wait their turn
    hop_s: float = 0.0001  # one way between two processes, in the mean
    seed: int = 0


class System(Protocol):
    """A control plane. It ends up calling Fleet.begin for every request, or Fleet.refuse."""

    name: str

    def arrive(self, request: Request) -> None: ...

    def idle(self, instance: Instance) -> None:
        """It has answered its request, or has just become ready."""


class Fleet:
    """The nodes and the requests of one run."""

    def __init__(self, clock: Clock, world: World) -> None:
        self.clock, self.world = clock, world
        self.rng = random.Random(world.seed)
        self.nodes = [Node(number, world.room) for number in range(world.nodes)]
        self.requests: list[Request] = []
        self.counts: dict[str, int] = {}
        self.system: System | None = None
        self._starting: dict[int, int] = {}
        self._queued: dict[int, list[Call]] = {}

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    def hop(self, then: Call) -> None:
        """A message on its way."""
        self.count("messages")
        self.clock.after(self.world.hop_s * (0.5 + self.rng.expovariate(2.0)), then)

    # --- instances

    def start(
        self,
        node: Node,
        function: str,
        ready: Callable[[Instance], None] | None = None,
        seconds: float | None = None,
    ) -> Instance | None:
        """Admitted, or None: the node is full. `ready` instead of System.idle, if given.

        `seconds`: of a start that goes another way than the others, and waits for none of them (a standby slot).
        """
        self.count("starts asked")
        if node.free <= 0:
            self.count("starts refused")
            return None
        self.count("starts")
        instance = Instance(function, node, since=self.clock.now)
        node.instances.append(instance)
        if seconds is not None:
            self.clock.after(seconds, lambda: self._is_ready(instance, ready))
        elif self._starting.get(node.number, 0) < self.world.parallel_starts:
            self._begin_start(instance, ready)
        else:
            queued = self._queued.setdefault(node.number, [])
            queued.append(lambda: self._begin_start(instance, ready))
        return instance

    def _begin_start(self, instance: Instance, ready: Callable[[Instance], None] | None) -> None:
        number = instance.node.number
        self._starting[number] = self._starting.get(number, 0) + 1

        def done() -> None:
            self._starting[number] -= 1
            if self._queued.get(number):
                self._queued[number].pop(0)()
            self._is_ready(instance, ready)

        self.clock.after(self.world.start_s, done)

    def _is_ready(self, instance: Instance, ready: Callable[[Instance], None] | None) -> None:
        if instance.state == "gone":
            return
        instance.state, instance.since = "idle", self.clock.now
        if ready is not None:
            ready(instance)
        elif self.system is not None:
            self.system.idle(instance)

    def end(self, instance: Instance) -> None:
        if instance.state == "busy":
            raise ValueError("an instance that serves a request can't be ended")
        if instance.state != "gone":
            instance.state = "gone"
            instance.node.instances.remove(instance)

    # --- requests

    def arrive(self, arrival: Arrival) -> None:
        request = Request(len(self.requests), arrival.key, self.clock.now, arrival.seconds or 0.001)
        self.requests.append(request)
        assert self.system is not None
        self.system.arrive(request)

    def begin(self, request: Request, instance: Instance) -> None:
        """The instance serves it from now on."""
        if instance.state != "idle" or request.began is not None:
            raise ValueError(f"request {request.number} on an instance that is {instance.state}")
        if instance.function != request.function:
            raise ValueError(f"request {request.number} is of {request.function}, not {instance.function}")
        instance.state, instance.since, instance.request = "busy", self.clock.now, request
        request.began = self.clock.now

        def ended() -> None:
            if instance.request is not request:
                return  # it was broken off
            request.ended = self.clock.now
            instance.state, instance.since, instance.request = "idle", self.clock.now, None
            assert self.system is not None
            self.system.idle(instance)

        self.clock.after(request.seconds, ended)

    def refuse(self, request: Request) -> None:
        """Its client hears why."""
        if not request.refused:
            request.refused = True
            self.count("refused")

    def break_off(self, instance: Instance) -> None:
        """Who sent the request there is dead, so that its client's connection is reset."""
        assert instance.request is not None
        self.refuse(instance.request)
        instance.state, instance.since, instance.request = "idle", self.clock.now, None
