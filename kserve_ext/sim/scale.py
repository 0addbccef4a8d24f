"""What the control plane costs as the cluster grows, with and without load, and whether that grows as a line does.

Processor time is that of the functions and the controller, by costs.py; agents on nodes are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from kserve_ext.sim.clock import Clock
from kserve_ext.sim.fleet import Fleet, World
from kserve_ext.sim.layout import FULL, Layout
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.runs import ours, run
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.workloads import SHARE_OF_FUNCTIONS, cold_starts

NODES: Final = (50, 210, 500, 1000, 2000)
INSTANCES: Final = (250, 500, 1000, 2000)
SETTLES_S: Final = 2.0
MEASURED_S: Final = 5.0


class Steady(NamedTuple):
    """A second of it."""

    core_s: float
    messages: float


def steady(world: World, layout: Layout, seed: int, instances: int = 0) -> Steady:
    """With so many instances, each of which serves one request all the time; nothing comes or goes."""
    clock = Clock()
    fleet = Fleet(clock, replace(world, seed=seed))
    galaxy = Galaxy(fleet, layout)
    fleet.system = galaxy
    if instances:
        for arrival in cold_starts(2000.0, instances, max(1, instances // SHARE_OF_FUNCTIONS), seed):
            clock.at(arrival.at, lambda arrival=arrival: fleet.arrive(arrival))  # type: ignore[misc]
    clock.run(1.0 + instances / 2000.0 + SETTLES_S)
    core_s, messages = galaxy.control_core_s(), fleet.counts["messages"]
    clock.run(clock.now + MEASURED_S)
    return Steady(
        (galaxy.control_core_s() - core_s) / MEASURED_S, (fleet.counts["messages"] - messages) / MEASURED_S
    )


def off_the_line(points: Sequence[tuple[float, float]]) -> float:
    """The largest share by which a point is off the line that is nearest to all (least squares of shares)."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True)) / spread
    return max(abs(y - mean_y - slope * (x - mean_x)) / y for x, y in points)


def idle(world: World, seed: int) -> Iterator[Row]:
    """No request at all, in clusters of NODES."""
    said = f"{said_of(world, seed).replace(f'{world.nodes} nodes', 'n nodes')}; 35 functions of each kind, no load"
    points: list[tuple[float, float]] = []
    for nodes in NODES:
        found = steady(replace(world, nodes=nodes), FULL, seed)
        points.append((nodes, found.core_s))
        yield _row(
            "cost when idle", f"processor time, {nodes} nodes", found.core_s * 100, "% of a core", said
        )
        yield _row("cost when idle", f"messages, {nodes} nodes", found.messages, "1/s", said)
    off = off_the_line(points) * 100
    yield _row("control cost grows linearly", "idle, against nodes: most off a line", off, "%", said)


def loaded(world: World, seed: int) -> Iterator[Row]:
    said = f"{said_of(world, seed)}; 35 functions of each kind, instances that serve one request all the time"
    points: list[tuple[float, float]] = []
    for count in INSTANCES:
        found = steady(world, FULL, seed, count)
        points.append((count, found.core_s))
        yield _row(
            "control cost", f"processor time, {count} busy instances", found.core_s * 100, "% of a core", said
        )
    off = off_the_line(points) * 100
    yield _row("control cost grows linearly", "against instances: most off a line", off, "%", said)


def starting(world: World, seed: int, count: int = 1000) -> Iterator[Row]:
    """Processor time for a start, the background included."""
    said = (
        f"{said_of(world, seed).replace(f'{world.nodes} nodes', 'n nodes')}; {count} cold starts at 2,000/s"
    )
    arrivals = cold_starts(2000.0, count, count // SHARE_OF_FUNCTIONS, seed)
    for nodes in NODES:
        result = run(ours(FULL, "galaxy"), arrivals, replace(world, nodes=nodes, seed=seed), 20.0)
        assert result.control_core_s is not None
        each = result.control_core_s / result.starts * 1e6
        yield _row("control cost", f"processor time for a start, {nodes} nodes", each, "us", said)


def large(world: World, seed: int, rate: float, count: int) -> Iterator[Row]:
    """Instances a second on few and on many nodes."""
    for nodes, functions, asked in ((210, 35, rate), (2000, 35, rate), (2000, 100, 4 * rate)):
        here = replace(world, nodes=nodes, seed=seed)
        layout = Layout(functions, functions, functions)
        arrivals = cold_starts(asked, count, count // SHARE_OF_FUNCTIONS, seed)
        result = run(ours(layout, "galaxy"), arrivals, here, 20.0)
        said = f"{said_of(here, seed)}; {functions} functions of each kind; {count} cold starts at {asked:,.0f}/s"
        label = f"{nodes} nodes, {functions} functions of each kind"
        yield Row(
            "decisions/s",
            f"instances ready/s, {label}",
            result.per_second,
            asked,
            "asked for",
            "1/s",
            "higher",
            said,
        )
        yield _row("decisions/s", f"p99 scheduling latency, {label}", result.p99, "s", said)


def _row(claim: str, metric: str, figure: float, unit: str, said: str) -> Row:
    return Row(claim, metric, figure, None, "", unit, "lower", said)
