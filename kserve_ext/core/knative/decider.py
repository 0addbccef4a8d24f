"""One revision's decider: how many pods it should have, by the windows every two seconds and at once in a burst.

The windows' verdict is scaling.decide(), number for number that of pkg/autoscaler/scaling (autoscaler.go,
multiscaler.go), without the bounds: they are the reconciler's business (pod_autoscaler.py). Knative looks again at
once only when the scale is zero; here whenever the activators report more than the pods that are wanted can take,
and that enters the state as panic does (burst.py), so the next tick can't undo it. Nor does a tick take away what
the activators have in hand right now. Never reads windows or pods itself.
"""

from __future__ import annotations

from kserve_ext.core.knative.collection import MOST
from kserve_ext.core.scaling.burst import Demand, burst, instances_for
from kserve_ext.core.scaling.decide import Observed, ScalingSpec, ScalingState, decide
from kserve_ext.core.scaling.window import Averages

#: An activator reports every second. What one that is late has said is no reason to start anything any more: it may
#: be gone, and its clients counted by another already.
FRESH_S = 1.2
#: The age that a report gets at once when its activator has hung up.
LATE_S = FRESH_S + 0.1
#: For so long it is a reason to take nothing away.
KEPT_S = 2.5


class Decider:
    __slots__ = ("_reports", "averages", "spec", "state")

    def __init__(self, spec: ScalingSpec, ready: int, now: float) -> None:
        self.spec = spec
        self.state = ScalingState.start(spec, ready, now)
        #: what the last tick went by
        self.averages: Averages | None = None
        #: the latest concurrency by activator, and when it came
        self._reports: dict[str, tuple[float, float]] = {}

    @property
    def desired(self) -> int:
        """Before bounds; -1 until something is known."""
        return self.state.wanted

    @property
    def excess_burst(self) -> int:
        return self.state.excess_burst

    @property
    def panicking(self) -> bool:
        return self.state.panic_since is not None

    def report(self, activator: str, concurrency: float, now: float) -> bool:
        """Takes in what an activator has held and in flight. True: tick now, don't wait for the next time."""
        if not 0 < concurrency <= MOST:
            self._reports.pop(activator, None)
            return False
        self._reports[activator] = concurrency, now
        return self.desired <= 0 or instances_for(self.spec, self._demand(now, FRESH_S)) > self._wanted

    def hung_up(self, activator: str, now: float) -> None:
        """Its connection has ended, so it may be gone: what it has said counts as if it were late already."""
        if activator in self._reports:
            concurrency, at = self._reports[activator]
            self._reports[activator] = concurrency, min(at, now - LATE_S)

    def tick(self, averages: Averages | None, ready: int | None, now: float) -> bool:
        """Decides anew. True: the reconciler should hear of it (another scale, or another sign of the excess)."""
        before, wanted = (self.desired, self.excess_burst < 0), self._wanted
        stable, panic = averages or (None, None)
        decide(self.spec, Observed(stable, panic, ready), self.state, now)
        if averages is not None:
            self.averages = averages
        if self.desired >= 0:
            demand = self._demand(now, KEPT_S)
            if instances_for(self.spec, demand) > wanted:
                demand = self._demand(now, FRESH_S)
            burst(self.spec, demand, self._wanted, self.state, now)
        return before != (self.desired, self.excess_burst < 0)

    @property
    def _wanted(self) -> int:
        """The pods that the reconciler keeps or starts by what was decided so far."""
        return max(self.desired, self.spec.floor(True))

    def _demand(self, now: float, most_age_s: float) -> Demand:
        """What the activators have in hand, by reports of no more than this age."""
        for activator in [a for a, (_, at) in self._reports.items() if now - at > KEPT_S]:
            del self._reports[activator]
        fresh = (concurrency for concurrency, at in self._reports.values() if now - at <= most_age_s)
        return Demand(0, sum(fresh))
