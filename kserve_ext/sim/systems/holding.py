"""Holding requests until an instance of their function is idle: what Knative and its relatives have alike."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field

from kserve_ext.sim.fleet import Fleet, Instance, Request


@dataclass(slots=True)
class Function:
    """What the data plane knows of one function."""

    held: deque[Request] = field(default_factory=deque)
    idle: list[Instance] = field(default_factory=list)  # the one that was used last is last
    instances: int = 0  # starting ones included
    starting: int = 0
    seen: deque[tuple[float, int]] = field(default_factory=deque)  # concurrency, sampled

    @property
    def concurrency(self) -> int:
        """Requests that are here: held and served."""
        return len(self.held) + self.instances - self.starting - len(self.idle)

    def average(self, now: float, window: float) -> float:
        """Over the samples of the window; 0 when there is none."""
        while self.seen and self.seen[0][0] < now - window:
            self.seen.popleft()
        return sum(value for _, value in self.seen) / len(self.seen) if self.seen else 0.0


class Holding(ABC):
    """Requests are held and given out; subclasses decide how many instances there are to be, and where."""

    name = ""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.clock = fleet, fleet.clock
        self.functions: dict[str, Function] = {}

    def arrive(self, request: Request) -> None:
        function = self.functions.setdefault(request.function, Function())
        function.held.append(request)
        self.give_out(function)
        if function.held:
            self.short(request.function, function)

    def idle(self, instance: Instance) -> None:
        function = self.functions[instance.function]
        function.idle.append(instance)
        self.give_out(function)

    def give_out(self, function: Function) -> None:
        while function.held and function.idle:
            self.fleet.begin(function.held.popleft(), function.idle.pop())

    @abstractmethod
    def short(self, name: str, function: Function) -> None:
        """A request is held, and no instance is idle."""

    # --- instances

    def admitted(self, function: Function) -> None:
        function.instances += 1
        function.starting += 1

    def ready(self, function: Function, instance: Instance) -> None:
        function.starting -= 1
        self.idle(instance)

    def shrink(self, function: Function, to: int) -> None:
        """Idle ones end, those that were idle for longest first."""
        while function.instances > to and function.idle:
            instance = function.idle.pop(0)
            function.instances -= 1
            self.fleet.end(instance)


@dataclass(frozen=True)
class Windows:
    """Knative's autoscaler, as the papers of this field set it for all that they compare."""

    tick_s: float = 2.0
    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_at: float = 2.0  # times what there is
    up: float = 1000.0
    down: float = 2.0
    grace_s: float = 30.0


KPA = Windows()


def desired(function: Function, windows: Windows, now: float) -> int:
    """Instances by the averages of both windows; panic counts when it asks for so many times what there is."""
    have = max(1, function.instances)
    stable = math.ceil(function.average(now, windows.stable_s))
    panic = math.ceil(_recent(function, now, windows.panic_s))
    wanted = max(stable, panic) if panic >= windows.panic_at * have else stable
    wanted = min(wanted, math.ceil(windows.up * have))
    return max(wanted, math.floor(have / windows.down)) if function.instances else wanted


def _recent(function: Function, now: float, window: float) -> float:
    recent = [value for at, value in function.seen if at >= now - window]
    return sum(recent) / len(recent) if recent else 0.0
