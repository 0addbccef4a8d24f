"""One system, one workload, one set of nodes: a run, and what came of it.

A run ends when every request is answered or the time is up. Latency is scheduling latency: from a request's arrival
to when an instance begins with it; one that was never begun with has waited to the end. The same arguments give the
same result, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from kserve_ext.sim.clock import Clock
from kserve_ext.sim.fleet import Fleet, Request, System, World
from kserve_ext.sim.layout import ABLATIONS, FULL, Layout
from kserve_ext.sim.parts.network import Taken
from kserve_ext.sim.systems.atoll import Atoll
from kserve_ext.sim.systems.central import Central, Costs
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.systems.knative import STOCK, TUNED, Knative
from kserve_ext.sim.systems.ray import Ray, RayActors
from kserve_ext.sim.systems.sparrow import Sparrow
from kserve_ext.sim.traces import Arrival

Make = Callable[[Fleet], System]
STEP_S: Final = 1.0


def ours(layout: Layout, name: str) -> Make:
    return lambda fleet: Galaxy(fleet, layout, name)


SYSTEMS: Final[Mapping[str, Make]] = {
    "galaxy": Galaxy,
    "knative": lambda fleet: Knative(fleet, STOCK),
    "knative-tuned": lambda fleet: Knative(fleet, TUNED, "knative-tuned"),
    "central": Central,
    "central-at-once": lambda fleet: Central(fleet, Costs(at_once=True), "central-at-once"),
    "sparrow": Sparrow,
    "ray": Ray,
    "ray-actors": RayActors,
    "atoll": Atoll,
    "sparrow-paid": lambda fleet: Sparrow(fleet, name="sparrow-paid", paid=True),
    "ray-paid": lambda fleet: Ray(fleet, name="ray-paid", paid=True),
    **{name: ours(layout, name) for name, layout in ABLATIONS.items() if layout != FULL},
}
#: those without a central part as their papers have them, paying for messages and starts as ours does
PAID: Final = ("sparrow-paid", "ray-paid")
#: those that are compared unless others are named
COMPARED: Final = ("galaxy", "knative", "knative-tuned", "central", "sparrow", "ray", "ray-actors", "atoll")


class Second(NamedTuple):
    """Of a timeline."""

    at: float
    arrived: int
    begun: int
    waiting: int
    instances: int


@dataclass(frozen=True)
class Result:
    """Times in seconds."""

    system: str
    requests: int
    begun: int
    p50: float
    p99: float
    p999: float
    per_second: float  # requests begun, from the first beginning to the last
    starts: int
    refused_starts: int
    messages: int
    probes: int
    decisions: int
    instance_seconds: float
    control_core_s: float | None  # processor time of the control plane; None: the system doesn't tell
    counts: Mapping[str, int]
    timeline: tuple[Second, ...] = ()


def run(
    make: Make, arrivals: Sequence[Arrival], world: World, patience_s: float = 60.0, measured_from: int = 0
) -> Result:
    """For `patience_s` after the last arrival at most. Requests before number `measured_from` only make the scene."""
    clock = Clock()
    fleet = Fleet(clock, world)
    fleet.system = make(fleet)
    ahead = iter(arrivals)

    def feed(arrival: Arrival) -> None:
        fleet.arrive(arrival)
        following = next(ahead, None)
        if following is not None:
            clock.at(following.at, lambda: feed(following))

    first = next(ahead, None)
    if first is None:
        raise ValueError("no arrivals: nothing to simulate")
    clock.at(first.at, lambda: feed(first))
    end = arrivals[-1].at + patience_s
    timeline: list[Second] = []
    instance_seconds = 0.0
    open_from = arrived_before = begun_before = 0
    while clock.now < end:
        clock.run(min(end, clock.now + STEP_S))
        instances = sum(len(node.instances) for node in fleet.nodes)
        instance_seconds += instances * STEP_S
        requests = fleet.requests
        while open_from < len(requests) and _settled(requests[open_from]):
            open_from += 1
        waiting = sum(not _settled(request) for request in requests[open_from:])
        begun = len(requests) - waiting
        timeline.append(
            Second(clock.now, len(requests) - arrived_before, begun - begun_before, waiting, instances)
        )
        arrived_before, begun_before = len(requests), begun
        if len(requests) == len(arrivals) and not waiting:
            break
    return _result(fleet, clock.now, measured_from, instance_seconds, tuple(timeline))


def _settled(request: Request) -> bool:
    return request.began is not None or request.refused


def _result(
    fleet: Fleet, now: float, measured_from: int, instance_seconds: float, timeline: tuple[Second, ...]
) -> Result:
    measured = fleet.requests[measured_from:]
    waited = sorted((now if r.began is None else r.began) - r.at for r in measured)
    begun = [r.began for r in measured if r.began is not None]
    span = max(begun, default=0.0) - min(begun, default=0.0)
    system = fleet.system
    assert system is not None
    counts = dict(sorted(fleet.counts.items()))
    return Result(
        system.name,
        len(measured),
        len(begun),
        percentile(waited, 0.5),
        percentile(waited, 0.99),
        percentile(waited, 0.999),
        (len(begun) - 1) / span if span > 0 else 0.0,
        counts.get("starts", 0),
        counts.get("starts refused", 0),
        counts.get("messages", 0),
        counts.get("probes", 0),
        counts.get("decisions", 0),
        instance_seconds,
        system.control_core_s() if isinstance(system, Galaxy) else None,
        counts,
        timeline,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def stopwatch(schedulers: int = FULL.schedule, *, probe_cache: bool = True) -> Mapping[str, Taken]:
    """What the real cores take for one message of each kind, on this machine, under a burst.

    Without a probe cache nodes are asked, which costs what else is not met.
    """
    from kserve_ext.sim.workloads import EMULATED, cold_starts

    clock = Clock()
    fleet = Fleet(clock, EMULATED)
    galaxy = Galaxy(fleet, replace(FULL, schedule=schedulers, probe_cache=probe_cache), stopwatch=True)
    fleet.system = galaxy
    for arrival in cold_starts(2000.0, 3000, 600, 0):
        brief = replace(arrival, seconds=0.2)
        clock.at(arrival.at, lambda brief=brief: fleet.arrive(brief))  # type: ignore[misc]
    clock.run(4.0)
    galaxy.grow("schedule")
    clock.run(100.0)
    galaxy.grow("dispatch")
    clock.run(105.0)
    assert galaxy.network.taken is not None
    return galaxy.network.taken
