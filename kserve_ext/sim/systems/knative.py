"""Knative: requests are held by the activator, one autoscaler decides, and every new pod goes through the API server.

The autoscaler looks at every revision each tick; a first request to one at zero is told at once. Pods come to be one
behind the other at the rate that the whole chain of controllers keeps up (`creations_per_s`): stock clients are held
back to a few a second, tuned ones are bounded by processor time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kserve_ext.sim.clock import Core
from kserve_ext.sim.fleet import Fleet
from kserve_ext.sim.systems.holding import KPA, Function, Holding, Windows, desired


@dataclass(frozen=True)
class Rates:
    """`creations_per_s`: pods a second of the whole cluster. `decision_s`: processor time of one decision."""

    creations_per_s: float
    decision_s: float = 0.0005
    windows: Windows = KPA


STOCK = Rates(creations_per_s=4.8)
TUNED = Rates(creations_per_s=50.0)
SAMPLE_S = 1.0


class Knative(Holding):
    def __init__(self, fleet: Fleet, rates: Rates = STOCK, name: str = "knative") -> None:
        super().__init__(fleet)
        self.name, self.rates = name, rates
        self._autoscaler = Core(self.clock)
        self._controllers = Core(self.clock)
        self._unplaced: deque[str] = deque()
        self.clock.every(SAMPLE_S, self._sample)
        self.clock.every(rates.windows.tick_s, self._tick)

    def short(self, name: str, function: Function) -> None:
        if function.instances == 0:  # the activator pokes the autoscaler; afterwards its ticks decide
            self._autoscaler.do(self.rates.decision_s, lambda: self._scale(name, function, 1))

    def _sample(self) -> None:
        for function in self.functions.values():
            function.seen.append((self.clock.now, function.concurrency))

    def _tick(self) -> None:
        for name, function in self.functions.items():
            if function.instances or function.held:
                self._autoscaler.do(
                    self.rates.decision_s,
                    lambda name=name, function=function: self._decide(name, function),  # type: ignore[misc]
                )

    def _decide(self, name: str, function: Function) -> None:
        self.fleet.count("decisions")
        wanted = desired(function, self.rates.windows, self.clock.now)
        if function.held:
            wanted = max(wanted, 1)
        if wanted > function.instances:
            self._scale(name, function, wanted)
        else:
            self.shrink(function, wanted)

    def _scale(self, name: str, function: Function, to: int) -> None:
        for _ in range(to - function.instances):
            self.admitted(function)
            self._controllers.do(1 / self.rates.creations_per_s, lambda: self._place(name, function))

    def _place(self, name: str, function: Function) -> None:
        """kube-scheduler: the emptiest node; a pod that fits nowhere is pending, and tried again."""
        node = max(self.fleet.nodes, key=lambda n: (n.free, -n.number))
        started = self.fleet.start(node, name, lambda instance: self.ready(function, instance))
        if started is None:
            self.clock.after(1.0, lambda: self._place(name, function))
