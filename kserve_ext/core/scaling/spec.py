"""What scaling needs to know of one revision: targets, windows, rates and bounds, resolved from its Scale.

The target follows pkg/reconciler/autoscaling/resources/target.go: the annotation, capped by
containerConcurrency, times the utilisation. Max-scale wins over every lower bound (Knative lets the initial
scale pass it). Validation is api/knative/autoscaling.py's: nothing here checks a range.
"""

from __future__ import annotations

from dataclasses import dataclass

from kserve_ext.core.facts import Scale

_LEAST_TARGET = 0.01
_DEFAULT_CONCURRENCY = 100.0
_DEFAULT_RPS = 200.0


@dataclass(frozen=True, slots=True)
class ScalingSpec:
    """What one revision asks for. `total` is what an instance can take, `target` what it should take."""

    target: float
    total: float
    #: requests in flight that one instance takes before a burst starts another (the metric may be rps)
    capacity: float = _DEFAULT_CONCURRENCY
    target_burst_capacity: float = -1.0
    stable_window_s: float = 60.0
    panic_threshold: float = 2.0
    max_up_rate: float = 1000.0
    max_down_rate: float = 2.0
    activation: int = 1
    initial: int = 1
    min: int = 0
    max: int = 0  # 0 = unbounded
    scale_down_delay_s: float = 0.0
    grace_s: float = 30.0
    retention_s: float = 0.0
    to_zero: bool = True
    start_deadline_s: float = 630.0
    reachable: bool = True  # False: no route leads here any more (a newer revision took over)

    @classmethod
    def of(
        cls, scale: Scale, concurrency: int = 0, reachable: bool = True, start_deadline_s: float = 630.0
    ) -> ScalingSpec:
        """From what the Revision carries; `concurrency` is its hard limit per instance, 0 = unlimited."""
        hard = float(concurrency) if concurrency > 0 else _DEFAULT_CONCURRENCY
        if scale.metric == "rps":
            total = scale.target or _DEFAULT_RPS
            capacity = hard
        else:
            total = scale.target or hard
            if concurrency > 0:
                total = min(total, hard)
            capacity = total
        return cls(
            target=max(_LEAST_TARGET, total * scale.utilization),
            total=total,
            capacity=max(1.0, capacity),  # one request never needs two instances
            target_burst_capacity=scale.target_burst_capacity,
            stable_window_s=scale.window_s,
            panic_threshold=scale.panic_threshold_percent / 100,
            max_up_rate=scale.max_up_rate,
            max_down_rate=scale.max_down_rate,
            activation=scale.activation,
            initial=scale.initial,
            min=scale.min,
            max=scale.max,
            scale_down_delay_s=scale.scale_down_delay_s,
            grace_s=scale.grace_s,
            retention_s=scale.retention_s,
            to_zero=scale.to_zero,
            start_deadline_s=start_deadline_s,
            reachable=reachable,
        )

    @property
    def initial_count(self) -> int:
        """How many instances a new revision gets before anything was observed."""
        return self.capped(max(self.min, self.initial)) if self.reachable else 0

    def floor(self, initialized: bool) -> int:
        """Fewest instances allowed: none once unreachable, the initial scale until it was reached once."""
        if not self.reachable:
            return 0
        return self.capped(max(self.min, self.initial) if self.initial > 1 and not initialized else self.min)

    def enough(self, initialized: bool) -> int:
        """How many ready instances make the revision active."""
        floor = self.min if self.reachable else 0
        return self.capped(max(floor, 1 if initialized else self.initial))

    def capped(self, count: int) -> int:
        return min(count, self.max) if self.max else count
