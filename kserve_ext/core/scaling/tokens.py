"""How many instances one stage of a group needs by its tokens: what arrives a second over what one instance does.

Prefill: prompt tokens that decode wants computed, over the prefill velocity. Decode: tokens generated, over what a
full instance generates. Averages are KPA's two windows, so that panic, delays, rates and bounds are decide()'s as for
concurrency; what it is handed is a number of instances. Going down takes a margin (BAND): load that is steady but for
noise keeps its number. A queue that the instances would need longer than BURST_S for counts at the moment of arrival.
Without a measured velocity it says nothing, and concurrency decides alone. Pure.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from kserve_ext.core.facts import Scale
from kserve_ext.core.scaling.decide import Observed
from kserve_ext.core.scaling.spec import ScalingSpec
from kserve_ext.core.scaling.window import Averages, MetricWindows, panic_window_s

BAND: Final = 0.1  # one instance less must be enough for so much more than the load
BURST_S: Final = 2.0
_EPSILON: Final = 1e-9


class TokenDemand:
    """Of one revision."""

    def __init__(self, scale: Scale) -> None:
        panic_s = panic_window_s(scale.window_s, scale.panic_window_percent)
        self._windows = MetricWindows(scale.window_s, panic_s, scale.algorithm)
        self._utilization = scale.utilization
        self._sum = 0.0
        #: tokens that wait or are under way
        self.queued = 0
        #: tokens a second of an instance, 0 = not known
        self.velocity = 0.0

    def arrived(self, tokens: int) -> None:
        self._sum += tokens

    def record(self, span_s: float, now: float) -> None:
        """Once a second: what has arrived since the last time."""
        self._windows.record(now, self._sum / span_s)
        self._sum = 0.0

    @property
    def target(self) -> float:
        """Tokens a second that an instance should have, 0 = not known."""
        return self.velocity * self._utilization

    def counts(self, existing: int, now: float) -> Averages | None:
        """Instances by the stable and by the panic window; None: it is not known what one does."""
        if self.target <= 0 or self._windows.empty(now):
            return None
        averages = self._windows.averages(now)
        return Averages(
            float(with_margin(averages.stable / self.target, existing)),
            float(with_margin(averages.panic / self.target, existing)),
        )

    def burst(self) -> int:
        """Instances that the queue needs to be through in BURST_S."""
        return math.ceil(self.queued / (self.velocity * BURST_S) - _EPSILON) if self.velocity > 0 else 0


def with_margin(need: float, existing: int) -> int:
    """`need` rounded up; below `existing` only by as much as leaves the margin."""
    up = math.ceil(need - _EPSILON)
    if up >= existing:
        return up
    return min(existing, math.ceil(need / (1 - BAND) - _EPSILON))


def by_instances(
    spec: ScalingSpec, concurrency: Averages, tokens: Averages, ready: int, instead: bool
) -> tuple[ScalingSpec, Observed]:
    """What decide() is asked when tokens count: numbers of instances with a target of one each.

    `instead` of concurrency, or beside it: then the larger counts.
    """

    def count(requests: float, by_tokens: float) -> float:
        return by_tokens if instead else max(by_tokens, float(math.ceil(requests / spec.target)))

    stable = count(concurrency.stable, tokens.stable)
    return replace(spec, target=1.0), Observed(stable, count(concurrency.panic, tokens.panic), ready)
