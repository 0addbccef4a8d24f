"""The KPA decision for one revision: how many instances there should be, and which limits bit.

Matches pkg/autoscaler/scaling/autoscaler.go (the windows' verdict) followed by the bounds of
pkg/reconciler/autoscaling/kpa/scaler.go, number for number. It never counts instances, reads a clock or
carries anything out; going to zero takes two more steps (scale_to_zero.py), and a burst is decided at arrival
(burst.py), through the same ScalingState. `decide` is the only function here that changes that state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kserve_ext.core.scaling.spec import ScalingSpec
from kserve_ext.core.scaling.window import MaxWindow

__all__ = ["TICK_S", "Decision", "Limit", "Observed", "ScalingSpec", "ScalingState", "decide"]

TICK_S = 2.0  # how often home decides; a constant in Knative, too

Limit = Literal[
    "no-data",
    "max-scale-up-rate",
    "max-scale-down-rate",
    "activation-scale",
    "panic",  # not scaled down while panicking
    "scale-down-delay",
    "initial-scale",
    "min-scale",
    "max-scale",
]


@dataclass(frozen=True, slots=True)
class Observed:
    """Window averages of the spec's metric (None: nobody reported), and the instances that are ready."""

    stable: float | None
    panic: float | None
    ready: int | None  # None: couldn't be counted


@dataclass(slots=True)
class ScalingState:
    """What one decision leaves to the next. Changed by decide() and burst() only."""

    #: None, or when the panic threshold was last crossed
    panic_since: float | None = None
    #: the largest scale wanted in this panic; nothing goes below it while the panic lasts
    max_panic: int = 0
    #: the last valid verdict before bounds, -1 before the first
    wanted: int = -1
    excess_burst: int = -1
    #: the initial scale was once reached; from then on it is no lower bound any more
    initialized: bool = False
    delay: MaxWindow | None = None

    @classmethod
    def start(cls, spec: ScalingSpec, ready: int, now: float) -> ScalingState:
        """Of a new decider: more than one ready instance means lost history, so nothing may shrink for a window."""
        tbc = spec.target_burst_capacity
        return cls(
            panic_since=now if ready > 1 else None,
            max_panic=ready,
            initialized=spec.enough(False) == 0,
            excess_burst=int(tbc) if tbc <= 0 else math.trunc(spec.initial * spec.total - tbc),
            delay=MaxWindow(spec.scale_down_delay_s, TICK_S) if spec.scale_down_delay_s > 0 else None,
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """`desired` is within the bounds (-1: nothing was ever known); `limits` are those that changed it."""

    desired: int
    excess_burst: int  # negative: requests should go by way of Dispatch
    panic: bool
    valid: bool  # False: no data, the former verdict was kept
    stable_want: int = -1  # after rate limits and activation scale
    panic_want: int = -1
    limits: tuple[Limit, ...] = ()


def decide(spec: ScalingSpec, observed: Observed, state: ScalingState, now: float) -> Decision:
    """One tick. Changes `state`."""
    if observed.ready is None or observed.stable is None or observed.panic is None:
        desired, limits = _bounded(spec, state)
        return Decision(
            desired, state.excess_burst, state.panic_since is not None, False, limits=("no-data", *limits)
        )

    state.initialized = state.initialized or observed.ready >= spec.enough(False)
    ready = max(1, observed.ready)
    stable_want, stable_limits = _rate_limited(spec, math.ceil(observed.stable / spec.target), ready)
    panic_raw = math.ceil(observed.panic / spec.target)
    panic_want, panic_limits = _rate_limited(spec, panic_raw, ready)

    _enter_or_leave_panic(spec, panic_raw / ready >= spec.panic_threshold, state, now)

    want, limits = stable_want, stable_limits
    if state.panic_since is not None:
        if panic_want > want:
            want, limits = panic_want, panic_limits
        if want < state.max_panic:
            limits = (*limits, "panic")
        want = state.max_panic = max(state.max_panic, want)

    if state.delay is not None and spec.reachable:
        delayed = state.delay.record(now, want)
        if delayed > want:
            want, limits = delayed, (*limits, "scale-down-delay")

    state.wanted = want
    state.excess_burst = _excess_burst(spec, observed.ready, observed.panic)
    desired, bounds = _bounded(spec, state)
    return Decision(
        desired=desired,
        excess_burst=state.excess_burst,
        panic=state.panic_since is not None,
        valid=True,
        stable_want=stable_want,
        panic_want=panic_want,
        limits=limits + bounds,
    )


def _rate_limited(spec: ScalingSpec, want: int, ready: int) -> tuple[int, tuple[Limit, ...]]:
    """Within the growth and shrinking of one tick. The ceiling lets a small rate still add one instance."""
    most = math.ceil(spec.max_up_rate * ready)
    least = math.floor(ready / spec.max_down_rate) if spec.reachable else 0
    count = min(max(want, least), most)
    limits: tuple[Limit, ...] = ()
    if count != want:
        limits = ("max-scale-up-rate",) if count < want else ("max-scale-down-rate",)
    if want > 0 and spec.activation > 1 and count < spec.activation:
        return spec.activation, (*limits, "activation-scale")
    return count, limits


def _enter_or_leave_panic(spec: ScalingSpec, over: bool, state: ScalingState, now: float) -> None:
    if over:
        state.panic_since = now
    elif state.panic_since is not None and state.panic_since + spec.stable_window_s < now:
        state.panic_since = None
        state.max_panic = 0


def _excess_burst(spec: ScalingSpec, ready: int, panic: float) -> int:
    """What could still arrive at once, beyond the target burst capacity. By what instances can take, not should."""
    if spec.target_burst_capacity == 0:
        return 0
    if spec.target_burst_capacity < 0:
        return -1
    return math.floor(ready * spec.total - spec.target_burst_capacity - panic)


def _bounded(spec: ScalingSpec, state: ScalingState) -> tuple[int, tuple[Limit, ...]]:
    if state.wanted < 0:
        return -1, ()
    floor = spec.floor(state.initialized)
    if state.wanted < floor:
        return floor, ("min-scale",) if floor <= spec.min else ("initial-scale",)
    capped = spec.capped(state.wanted)
    return capped, ("max-scale",) if capped < state.wanted else ()
