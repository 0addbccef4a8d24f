"""One reconciliation of a PodAutoscaler: from what is known and wanted to the scale, the path and the status.

Matches pkg/reconciler/autoscaling/kpa (kpa.go, scaler.go): bounds, the two phases to zero, whether requests go by
way of the activators and of how many, and the Active condition. What is remembered from one time to the next is
the PodAutoscaler's own status, nothing else, so any replica can go on where another stopped. `now` is unix time,
as in the conditions. Writes nothing, probes nothing; `needs_probe` says when the answer of a probe is called for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, NamedTuple

from kserve_ext.core.scaling.scale_to_zero import Activity, Phase, Why, step
from kserve_ext.core.scaling.spec import ScalingSpec

MIN_ACTIVATORS: Final = 2
#: After it was declared inactive while the activators are in the path already, nothing else calls for a next time.
DEACTIVATED_RECHECK_S: Final = 3.0


class Mode(Enum):
    """Where the public service of a revision leads."""

    SERVE = "Serve"  # to its pods
    PROXY = "Proxy"  # to activators


class Pods(NamedTuple):
    ready: int = 0
    not_ready: int = 0
    pending: int = 0
    terminating: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """The part of the PodAutoscaler's status that decides. New ones are activating."""

    phase: Phase
    since: float
    initialized: bool = False  # it once had its initial scale
    service: str = ""  # the public service, "" until there is one


@dataclass(frozen=True, slots=True)
class Service:
    """The ServerlessService: what it is asked for, and what of it is true."""

    mode: Mode = Mode.PROXY
    public: str = ""
    private: str = ""
    #: since when the public service leads to activators; None: it doesn't
    proxying_since: float | None = None


class Wanted(NamedTuple):
    """The decider's verdict, before bounds."""

    desired: int = -1
    excess_burst: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    scale: int | None  # pods that should be asked for; None: leave as it is
    want: int  # what goes into the status, -1: unknown
    mode: Mode
    activators: int
    phase: Phase
    timed_out: bool  # inactive because it couldn't be activated
    initialized: bool
    why: Why
    recheck_s: float | None = None


def needs_probe(spec: ScalingSpec, known: Known, wanted: Wanted) -> bool:
    """Before the last pods go, it must be sure that requests arrive at an activator: that takes a request there."""
    return (
        known.phase == "inactive"
        and wanted.desired >= 0
        and _bounded(_attainable(spec, known), known, wanted.desired) == 0
        and spec.to_zero
        and spec.target_burst_capacity != -1
    )


def without_service(spec: ScalingSpec, known: Known) -> Outcome:
    """Nothing can be decided before the private service exists; meanwhile requests go to activators."""
    spec = _attainable(spec, known)
    idle = known.phase == "inactive" or spec.enough(known.initialized) == 0
    return Outcome(
        scale=None,
        want=-1,
        mode=Mode.PROXY,
        activators=MIN_ACTIVATORS,
        phase="inactive" if idle else "activating",
        timed_out=False,
        initialized=_initialized(spec, known, 0, known.service),
        why="unknown",
    )


def reconcile(
    spec: ScalingSpec,
    known: Known,
    service: Service,
    wanted: Wanted,
    pods: Pods,
    probed: bool,
    activator_capacity: float,
    now: float,
) -> Outcome:
    """`probed`: a request to the public service was answered by an activator (as true where needs_probe says no)."""
    spec = _attainable(spec, known)
    activity = Activity(known.phase, known.since)
    desired = _bounded(spec, known, wanted.desired) if wanted.desired >= 0 else -1
    diverted_since = (service.proxying_since or now) if probed else None
    verdict = step(spec, desired, pods.ready, known.initialized, activity, now, diverted_since)
    serve = verdict.want > 0 and wanted.excess_burst >= 0
    recheck_s = verdict.recheck_s
    if verdict.why == "deactivated":
        recheck_s = DEACTIVATED_RECHECK_S if service.mode is Mode.PROXY else None
    return Outcome(
        scale=verdict.scale,
        want=verdict.want,
        mode=Mode.SERVE if serve else Mode.PROXY,
        activators=activators(spec, pods.ready, activator_capacity),
        phase=activity.phase,
        timed_out=activity.timed_out,
        initialized=_initialized(spec, known, pods.ready, service.public),
        why=verdict.why,
        recheck_s=recheck_s,
    )


def activators(spec: ScalingSpec, ready: int, capacity: float) -> int:
    """How many activators a revision's requests are spread over: what its pods can take, and a burst on top."""
    if spec.target_burst_capacity == 0:
        return MIN_ACTIVATORS
    load = ready * spec.total + max(0.0, spec.target_burst_capacity)
    return max(MIN_ACTIVATORS, math.ceil(load / capacity))


def _attainable(spec: ScalingSpec, known: Known) -> ScalingSpec:
    """A lower bound wins over the upper one, as in Knative: an initial scale above max-scale is reached once."""
    if not spec.max or not spec.reachable:
        return spec
    return replace(spec, max=max(spec.max, spec.min, 0 if known.initialized else spec.initial))


def _bounded(spec: ScalingSpec, known: Known, desired: int) -> int:
    return max(spec.floor(known.initialized), spec.capped(desired))


def _initialized(spec: ScalingSpec, known: Known, ready: int, service: str) -> bool:
    return known.initialized or bool(service and ready >= spec.enough(False))
