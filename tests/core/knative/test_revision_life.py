"""Whole lives of a revision in virtual time: windows, decider and reconciliation together, with pods that take time.

The load and the slowness of the cluster are drawn at random; what must hold is what a user would expect: whoever
asks gets pods, whoever stops asking pays for none, and no pod is taken from under a request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.knative.collection import Collection
from kserve_ext.core.knative.decider import Decider
from kserve_ext.core.knative.pod_autoscaler import Known, Mode, Pods, Service, Wanted, needs_probe, reconcile
from kserve_ext.core.knative.sampling import Load
from kserve_ext.core.scaling.spec import ScalingSpec

BEGIN = 1_700_000_000
WINDOW, GRACE = 20, 10
#: After the last request: the window, the time that it is kept active, the grace period, and a little.
SETTLED = 2 * WINDOW + GRACE + 20
SPEC = ScalingSpec(
    target=7, total=10, capacity=10, stable_window_s=WINDOW, grace_s=GRACE, start_deadline_s=600
)


class Phase(NamedTuple):
    """So many seconds of so many requests in flight."""

    seconds: int
    load: float


class Life:
    """A revision, the pods that it has, and a Kubernetes that does everything `slow` seconds later."""

    def __init__(self, spec: ScalingSpec, slow: int) -> None:
        self.spec, self.slow = spec, slow
        self.now = float(BEGIN)
        self.collection = Collection(WINDOW, 2, "linear", spec.target_burst_capacity != -1)
        self.decider = Decider(spec, 1, self.now)
        self.known = Known("activating", self.now, False, "rev")
        self.service = Service(Mode.PROXY, "rev", "rev-private", self.now)
        self.scale = 1
        self.ready = 1
        self.coming: deque[tuple[float, int]] = deque()
        self.turning: deque[tuple[float, Mode]] = deque()

    def second(self, load: float) -> None:
        """One second of load, seen by an activator if there is one in the path, else by the pods' own statistics."""
        self.now += 1
        self._kubernetes()
        through = self.service.mode is Mode.PROXY or not self.ready
        if self.ready and not through:
            self.collection.record(Load(load, load), self.now)
        elif self.ready and self.collection.scraped:
            self.collection.record(Load(0, 0), self.now)
        urgent = False
        if through and load:
            self.collection.record(Load(load, load), self.now)
            urgent = self.decider.report("activator", load, self.now)
        if urgent or self.now % 2 == 0:
            self.decider.tick(self.collection.averages("concurrency", self.now), self.ready, self.now)
        self._reconcile()

    def _kubernetes(self) -> None:
        while self.coming and self.coming[0][0] <= self.now:
            self.ready = self.coming.popleft()[1]
        while self.turning and self.turning[0][0] <= self.now:
            mode = self.turning.popleft()[1]
            if mode is not self.service.mode:
                since = self.now if mode is Mode.PROXY else None
                self.service = replace(self.service, mode=mode, proxying_since=since)

    def _reconcile(self) -> None:
        wanted = Wanted(self.decider.desired, self.decider.excess_burst)
        in_path = self.service.mode is Mode.PROXY
        before = self.known.phase
        probed = in_path if needs_probe(self.spec, self.known, wanted) else True
        outcome = reconcile(
            self.spec, self.known, self.service, wanted, Pods(self.ready), probed, 100, self.now
        )
        if outcome.scale is not None and outcome.scale != self.scale:
            assert outcome.scale > 0 or before != "active"
            assert outcome.scale > 0 or in_path, "the last pod goes only from behind an activator"
            self.scale = outcome.scale
            self.coming.append((self.now + self.slow, self.scale))
        self.turning.append((self.now + self.slow, outcome.mode))
        since = self.known.since if outcome.phase == before else self.now
        self.known = Known(outcome.phase, since, outcome.initialized, "rev")


specs = st.builds(
    lambda low, high, tbc, delay: replace(
        SPEC, min=low, max=high and low + high, target_burst_capacity=tbc, scale_down_delay_s=delay
    ),
    st.sampled_from([0, 0, 2]),
    st.sampled_from([0, 1, 30]),
    st.sampled_from([-1.0, 0.0, 20.0]),
    st.sampled_from([0.0, 0.0, 10.0]),
)
loads = st.lists(
    st.builds(Phase, st.integers(1, 60), st.sampled_from([0.0, 0.0, 0.4, 3.0, 12.0, 90.0])), max_size=6
)


@given(specs, loads, st.integers(0, 5))
def test_pods_come_and_go_with_the_load(spec: ScalingSpec, phases: list[Phase], slow: int) -> None:
    life = Life(spec, slow)
    for phase in phases:
        for second in range(phase.seconds):
            life.second(phase.load)
            assert life.scale >= (spec.min if life.known.initialized else 0)
            assert not spec.max or life.scale <= spec.max
            if phase.load and second >= 3:
                assert life.scale >= 1
            if phase.load and second >= slow + 5 and life.ready:
                room = life.scale * spec.total >= phase.load
                assert room or life.scale == spec.max or life.service.mode is Mode.SERVE
    for _ in range(SETTLED + 4 * slow + int(spec.scale_down_delay_s)):
        life.second(0.0)
    assert (life.scale, life.known.phase) == (spec.min, "active" if spec.min else "inactive")
    life.second(1.0)
    assert life.scale >= 1, "at once"
