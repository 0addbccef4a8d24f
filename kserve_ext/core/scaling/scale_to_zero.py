"""The last steps down: when a revision without demand may really stop its last instances, and when it must wait.

Two phases, as in pkg/reconciler/autoscaling/kpa (scaler.go, kpa.go). An active revision that has nothing to do
stays up for a stable window; then it is declared inactive, which stops nothing; then, when requests surely
arrive at a Dispatch function that can hold them (for the grace period) and the retention period is over, its
instances stop. A revision that can't start within its deadline is given up until new demand comes.
Counts nothing and stops nothing itself; `step` returns the number to apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from kserve_ext.core.scaling.decide import ScalingSpec

NOT_DIVERTED_S = 1.0  # then it is asked again whether requests arrive where they can be held

Phase = Literal["activating", "active", "inactive"]
Why = Literal[
    "demand",
    "min-scale",
    "unknown",  # nothing was ever observed
    "scale-to-zero-disabled",
    "starting",
    "timed-out",
    "idle-wait",  # active for less than a stable window
    "busy",  # a request is there that the averages don't show yet
    "deactivated",
    "not-diverted",
    "grace-period",
    "retention-period",
    "no-traffic",
]


@dataclass(slots=True)
class Activity:
    """Where a revision stands. Changed by step() only."""

    phase: Phase
    since: float  # when this phase began
    timed_out: bool = False  # inactive because it didn't start in time

    @classmethod
    def start(cls, spec: ScalingSpec, now: float) -> Activity:
        return cls("activating" if spec.initial_count > 0 else "inactive", now)


class Verdict(NamedTuple):
    scale: int | None  # instances that should exist; None: leave them as they are
    phase: Phase
    why: Why
    recheck_s: float | None = None  # ask again after so long, even if nothing happens

    @property
    def want(self) -> int:
        """What is wished for, carried out already or not; -1: unknown, or known only when it has started."""
        if self.scale is not None:
            return self.scale
        return -1 if self.why in ("unknown", "starting") else 0


class _Zero(NamedTuple):
    """How a wish for zero is answered: `want` goes into the phase, `apply` says whether it's carried out."""

    want: int
    apply: bool
    why: Why
    recheck_s: float | None = None


def step(
    spec: ScalingSpec,
    desired: int,
    ready: int,
    initialized: bool,
    activity: Activity,
    now: float,
    diverted_since: float | None,
    busy: bool = False,
) -> Verdict:
    """One reconciliation; `desired` is Decision.desired (-1: unknown), `initialized` ScalingState's.

    `diverted_since`: since when all requests are known to arrive at Dispatch functions (None: they aren't; in
    the embedded cluster always, so the time at which the revision was created). `busy`: a request is held or
    in flight.
    """
    if desired < 0 and activity.phase == "activating":
        desired = spec.floor(initialized)
    if desired < 0:
        outcome = _Zero(-1, False, "unknown")
    elif desired == 0:
        outcome = _zero(spec, activity, now, diverted_since, busy)
    else:
        at_bound = desired == spec.floor(initialized)
        outcome = _Zero(desired, True, "min-scale" if at_bound else "demand")
    _move(spec, outcome.want, ready, initialized, activity, now)
    return Verdict(outcome.want if outcome.apply else None, activity.phase, outcome.why, outcome.recheck_s)


def _zero(
    spec: ScalingSpec, activity: Activity, now: float, diverted_since: float | None, busy: bool
) -> _Zero:
    elapsed = now - activity.since
    if not spec.to_zero:
        return _Zero(1, True, "scale-to-zero-disabled")
    if activity.phase == "activating":
        left = spec.start_deadline_s - elapsed
        return _Zero(0, True, "timed-out") if left <= 0 else _Zero(-1, False, "starting", left)
    if busy:
        return _Zero(1, True, "busy")
    if activity.phase == "active":
        left = spec.stable_window_s - elapsed
        return _Zero(1, True, "idle-wait", left) if left > 0 else _Zero(0, False, "deactivated", 0.0)

    if diverted_since is None:
        return _Zero(0, False, "not-diverted", NOT_DIVERTED_S)
    retention_left = spec.retention_s - elapsed if spec.reachable else 0.0
    grace_left = spec.grace_s - max(elapsed, now - diverted_since)
    if retention_left > 0:
        return _Zero(0, False, "retention-period", max(retention_left, grace_left))
    if grace_left > 0:
        return _Zero(0, False, "grace-period", grace_left)
    return _Zero(0, True, "no-traffic")


def _move(
    spec: ScalingSpec, want: int, ready: int, initialized: bool, activity: Activity, now: float
) -> None:
    """The phase that follows; its clock restarts only when it changes."""
    enough = spec.enough(initialized)
    phase: Phase
    if want == 0 or enough == 0 or (want < 0 and activity.phase == "inactive"):
        phase = "inactive"
    else:
        phase = "active" if ready >= enough else "activating"
    if phase != activity.phase:
        activity.timed_out = activity.phase == "activating" and phase == "inactive" and enough > 0
        activity.phase, activity.since = phase, now
