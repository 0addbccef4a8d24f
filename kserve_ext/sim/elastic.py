"""A control plane that grows and shrinks by itself, in virtual time: the real decisions, carried out on ours.

Every function reports each period how busy its core was and how long its queue is, applies when that is too much, and
the controller's machine (core/control) answers, starts functions on nodes, drains and stops them. A start takes
FORK_S from the node's being asked to the function's joining, as measured with real processes. The simulator knows the
processor time of each function exactly, so the busy share is what counts here, and no rate. As in a real process,
what is still in the queue has used none yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Final

from kserve_ext.core.control.facts import (
    NEEDS,
    SCALED,
    Bounds,
    Kept,
    Reading,
    ScaledKind,
    revision_of,
    scaled,
)
from kserve_ext.core.control.machine import ElasticMachine, Instruction
from kserve_ext.core.control.meter import Meter
from kserve_ext.core.control.roster import Drain, Start, Stop
from kserve_ext.core.control.scaling import Pace
from kserve_ext.core.facts import Instance as Fact
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.sim import bursts
from kserve_ext.sim.fleet import Fleet, Instance, Request, World
from kserve_ext.sim.layout import Layout
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.runs import Result, run
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.traces import Arrival

FORK_S: Final = 0.02
PERIOD_S: Final = 0.5
STEP_S: Final = 0.1
#: What a node gives to functions, beside the instances it has room for.
PLACES: Final = 2
BUSY_ALONE: Final = dict.fromkeys(SCALED, inf)
#: Each request stands for so many: a whole trace of such a load has too many to simulate one by one.
WEIGHT: Final = 1000.0
SHAPE: Final = bursts.Shape(seconds=120.0, bursts=1, functions=200, base=0.5, peak=250.0)
MOST: Final = 6


class Elastic:
    """Ours, with so many functions of each kind as the load asks for."""

    def __init__(
        self, fleet: Fleet, bounds: dict[ScaledKind, Bounds], layout: Layout, pace: Pace, name: str
    ) -> None:
        least = {kind: bounds[kind].min for kind in SCALED}
        layout = replace(
            layout,
            dispatch=least["dispatch"],
            schedule=least["schedule"],
            cluster_mgr=least["cluster_mgr"],
        )
        self.galaxy = Galaxy(fleet, layout, name)
        self.name, self.fleet, self.clock = name, fleet, fleet.clock
        self.machine = ElasticMachine(bounds, Kept(), self.clock.now, BUSY_ALONE, pace)
        self._meters: dict[FunctionID, Meter] = {}
        self._nodes: dict[FunctionID, NodeID] = {}
        #: functions that there were, in all, times the seconds that they lived
        self.function_seconds = 0.0
        self.most = dict(least)
        self.ended = 0
        self.clock.every(PERIOD_S, self._report)
        self.clock.every(STEP_S, self._step)

    # --- what a system is

    def arrive(self, request: Request) -> None:
        self.galaxy.arrive(request)

    def idle(self, instance: Instance) -> None:
        self.galaxy.idle(instance)

    def control_core_s(self) -> float:
        return self.galaxy.control_core_s()

    # --- loads and applications

    def _report(self) -> None:
        now, galaxy = self.clock.now, self.galaxy
        for node in galaxy.nodes:
            self.machine.room(node, node, NEEDS._replace(cpu_milli=PLACES * NEEDS.cpu_milli))
        for name, member in list(galaxy.functions.items()):
            process = galaxy.processes[name]
            if not process.runs(now):
                continue
            meter = self._meters.setdefault(name, Meter(now - PERIOD_S))
            core = process.core
            reading = meter.read(0, core.busy - core.backlog, core.backlog, now)
            self.machine.report(name, member.kind, reading)
            kind = scaled(member.kind)
            if kind and meter.applies(reading, self.machine.threshold(kind)):
                apply = partial(self._apply, name, kind, reading)
                galaxy.network.tell(process, galaxy.controller.process, "report", apply)

    def _apply(self, name: FunctionID, kind: ScaledKind, reading: Reading) -> None:
        before = self.machine.scalings[kind].wanted
        self.machine.apply(name, kind, reading, self.clock.now)
        if self.machine.scalings[kind].wanted > before:
            self.fleet.count("scale-outs")
            self._carry(self._decide())

    # --- carrying out

    def _step(self) -> None:
        living = [n for n in self.galaxy.functions if self.galaxy.processes[n].runs(self.clock.now)]
        self.function_seconds += len(living) * STEP_S
        for kind in SCALED:
            count = sum(self.galaxy.functions[n].kind == kind for n in living)
            self.most[kind] = max(self.most[kind], count)
        self._carry(self._decide())

    def _decide(self) -> list[Instruction]:
        membership = self.galaxy.controller.membership
        return self.machine.step(membership.view, self.clock.now, consistent=membership.consistent())

    def _carry(self, instructions: Sequence[Instruction]) -> None:
        controller = self.galaxy.controller
        for i in instructions:
            match i:
                case Start():
                    self.fleet.hop(partial(self.clock.after, FORK_S, partial(self._started, i)))
                case Drain():
                    controller.drain(i.function)
                case Stop():
                    self.fleet.hop(partial(self._stop, i.function))

    def _started(self, i: Start) -> None:
        galaxy = self.galaxy
        self._nodes[i.function] = i.node
        galaxy.boot(i.kind, i.function)
        if i.kind == "dispatch":
            galaxy.upkeep.tick(i.function, STEP_S)
        self.fleet.hop(partial(galaxy.controller.join, galaxy.functions[i.function]))

    def _stop(self, function: FunctionID) -> None:
        """It ends what it has begun with, leaves, and is gone."""
        galaxy = self.galaxy
        member = galaxy.functions.get(function)
        if member is None:
            return
        galaxy.closed.add(function)
        if self._has_work(function):
            self.clock.after(STEP_S, partial(self._stop, function))
            return
        galaxy.controller.leave(function, member.incarnation, "drained")
        galaxy.processes[function].dead = True
        del galaxy.functions[function]
        self.ended += 1
        kind = scaled(member.kind)
        assert kind is not None
        fact = Fact(InstanceID(function), revision_of(kind), self._nodes[function], "gone")
        _, out = self.machine.told(self._nodes[function], [fact], self.clock.now)
        self._carry(out)

    def _has_work(self, function: FunctionID) -> bool:
        shard, scheduler = self.galaxy.shards.get(function), self.galaxy.schedulers.get(function)
        if scheduler is not None:
            return scheduler.machine.under_way > 0
        if shard is None:
            return False
        throttlers = [part.throttler for part in shard.shard.parts.values()]
        return any(t.held or t.in_flight for t in throttlers)


# --- rows


@dataclass(frozen=True)
class Run:
    """Of one control plane: what its requests waited, and what it held and used for that."""

    result: Result
    function_seconds: float
    core_s: float
    most: dict[ScaledKind, int]
    ended: int  # functions that were drained


def of_all(least: int, most: int) -> dict[ScaledKind, Bounds]:
    return dict.fromkeys(SCALED, Bounds(least, most))


def only(kind: ScaledKind) -> dict[ScaledKind, Bounds]:
    """One of each, and this kind alone may grow."""
    return {k: Bounds(1, MOST if k == kind else 1) for k in SCALED}


def measured(
    name: str,
    bounds: dict[ScaledKind, Bounds],
    arrivals: Sequence[Arrival],
    world: World,
    *,
    weight: float = WEIGHT,
    pace: Pace = Pace(stable_s=20.0, shrink_s=5.0),  # noqa: B008
) -> Run:
    made: list[Elastic] = []

    def make(fleet: Fleet) -> Elastic:
        made.append(Elastic(fleet, bounds, Layout(weight=weight), pace, name))
        return made[-1]

    result = run(make, arrivals, world, patience_s=20.0)
    return Run(result, made[0].function_seconds, made[0].control_core_s(), made[0].most, made[0].ended)


def rows(world: World, seed: int, shape: bursts.Shape = SHAPE, weight: float = WEIGHT) -> Iterator[Row]:
    """Static control planes of the least and the most, one that scales, and ones of which one kind scales."""
    arrivals = list(bursts.arrivals(replace(shape, seed=seed)))
    elastic = measured("elastic", of_all(1, MOST), arrivals, world, weight=weight)
    most, least = (
        measured(f"static, {count} of each kind", of_all(count, count), arrivals, world, weight=weight)
        for count in (MOST, 1)
    )
    seconds = len(elastic.result.timeline)
    reached = ", ".join(f"{count} {kind}" for kind, count in elastic.most.items())
    conditions = (
        f"{said_of(world, seed)}; synthetic bursts of {shape.seconds:g} s up to {shape.peak:g} times the trough, "
        f"{len(arrivals)} requests, each for {weight:g}; 1 to {MOST} of each kind, reached {reached}"
    )
    claim = "static against elastic control planes"
    for other in (most, least):
        name = other.result.system
        yield Row(
            claim,
            "cores held by functions, in the mean",
            elastic.function_seconds / seconds,
            other.function_seconds / seconds,
            name,
            "cores",
            "lower",
            conditions,
        )
        yield Row(claim, "processor time", elastic.core_s, other.core_s, name, "core-s", "lower", conditions)
        yield Row(
            claim,
            "p99 scheduling latency",
            elastic.result.p99,
            other.result.p99,
            name,
            "s",
            "lower",
            conditions,
        )
    for kind in SCALED:
        alone = measured(f"only {kind} grows", only(kind), arrivals, world, weight=weight)
        yield Row(
            "growing one kind of function alone has limited effect",
            "p99 scheduling latency, all kinds elastic",
            elastic.result.p99,
            alone.result.p99,
            alone.result.system,
            "s",
            "lower",
            f"{conditions}; alone: {alone.most[kind]} {kind}",
        )
