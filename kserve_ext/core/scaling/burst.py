"""Home's decision at the moment a request arrives: how many instances should exist right now.

Knative looks every two seconds; here demand = held + in flight over what one instance takes, rounded up once,
counts at once. A rise enters the state as crossing the panic threshold does (panic time now, panic maximum
raised), so it outlasts a request that is gone before the next tick, and that tick can't undo it. It never
shrinks anything, and what is starting counts as existing, so it never asks twice. The rate limits of a tick
don't apply: they tame an extrapolation from averages, and this demand is real.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from kserve_ext.core.scaling.decide import ScalingSpec, ScalingState


class Demand(NamedTuple):
    """Requests of one revision over all shards."""

    held: float
    in_flight: float  # may be an average over the last second


def burst(spec: ScalingSpec, demand: Demand, existing: int, state: ScalingState, now: float) -> int:
    """How many instances should exist: at least `existing` (running and starting, less those meant to stop).

    Changes `state` only when these are too few, so that steady load is left to the windows.
    """
    return latch(instances_for(spec, demand), existing, state, now)


def latch(need: int, existing: int, state: ScalingState, now: float) -> int:
    """The same for a need that is known already, within max-scale."""
    if need > existing:
        state.panic_since = now
        state.max_panic = max(state.max_panic, need)
        state.wanted = max(state.wanted, need)
    return max(existing, need)


def instances_for(spec: ScalingSpec, demand: Demand) -> int:
    """Instances that this demand needs, within max-scale. None needed is 0, any at all wakes activation-scale."""
    requests = demand.held + demand.in_flight
    if requests <= 0:
        return 0
    return spec.capped(max(math.ceil(requests / spec.capacity), spec.activation))
