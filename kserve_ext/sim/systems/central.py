"""One central scheduler in the manner of Dirigent: it knows all, decides all, and writes nothing durable on the way.

Requests are held by data planes; the control plane hears of each that finds no instance, decides at once for a
function at zero and by its ticks otherwise, and asks the emptiest node itself. Its process does one thing at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from kserve_ext.sim.clock import Core
from kserve_ext.sim.fleet import Fleet
from kserve_ext.sim.systems.holding import KPA, Function, Holding, Windows, desired
from kserve_ext.sim.systems.knative import SAMPLE_S


@dataclass(frozen=True)
class Costs:
    """Processor time of the control plane. 2,500 creations a second is what its authors report."""

    creation_s: float = 1 / 2500
    at_once: bool = False  # decides at every arrival, as ours does, instead of at ticks
    windows: Windows = KPA


class Central(Holding):
    def __init__(self, fleet: Fleet, costs: Costs = Costs(), name: str = "central") -> None:
        super().__init__(fleet)
        self.name, self.costs = name, costs
        self._control = Core(self.clock)
        self.clock.every(SAMPLE_S, self._sample)
        self.clock.every(costs.windows.tick_s, self._tick)

    def short(self, name: str, function: Function) -> None:
        if function.instances == 0 or self.costs.at_once:
            self.fleet.hop(lambda: self._asked(name, function))

    def _asked(self, name: str, function: Function) -> None:
        wanted = len(function.held) if self.costs.at_once else 1
        self._scale(name, function, max(wanted, function.concurrency if self.costs.at_once else 1))

    def _sample(self) -> None:
        for function in self.functions.values():
            function.seen.append((self.clock.now, function.concurrency))

    def _tick(self) -> None:
        for name, function in self.functions.items():
            if not (function.instances or function.held):
                continue
            wanted = max(desired(function, self.costs.windows, self.clock.now), 1 if function.held else 0)
            if wanted > function.instances:
                self._scale(name, function, wanted)
            else:
                self.shrink(function, wanted)

    def _scale(self, name: str, function: Function, to: int) -> None:
        for _ in range(to - function.instances):
            self.admitted(function)
            self.fleet.count("decisions")
            self._control.do(self.costs.creation_s, lambda: self._place(name, function))

    def _place(self, name: str, function: Function) -> None:
        node = max(self.fleet.nodes, key=lambda n: (n.free, -n.number))

        def asked() -> None:
            if self.fleet.start(node, name, lambda instance: self.ready(function, instance)) is None:
                function.instances -= 1
                function.starting -= 1
                self.clock.after(0.1, lambda: self._asked(name, function) if function.held else None)

        self.fleet.hop(asked)
