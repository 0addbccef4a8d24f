"""What it costs that Schedule functions join: time to a consistent view and to the hand-over, nodes moved, balance.

Each figure is shown against existing instances, functions that join at once, and the cluster's size, with the real
cores of controller, members and hand-over. The processes that join stand already, as in the published figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Final, Literal

from kserve_ext.core.ids import FunctionID
from kserve_ext.core.partitions import loads, moved, owners
from kserve_ext.sim.clock import Clock
from kserve_ext.sim.fleet import Fleet, World
from kserve_ext.sim.layout import FULL
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.workloads import cold_starts

CLAIM: Final = "adding one Schedule function costs at least 30 ms"
PUBLISHED_S: Final = 0.030
MOVED: Final = 1.5  # times an even share, at most
BALANCE: Final = 1.25  # of the mean, at most, where whole nodes allow it
FUNCTIONS: Final = 35  # when all have joined
STANDS_S: Final = 3.0  # for which the cluster has been there
STEP_S: Final = 0.0002
PATIENCE_S: Final = 5.0


@dataclass(frozen=True)
class Joined:
    """`moved` is a share of the nodes, `balance` the largest partition over the mean."""

    consistent_s: float
    handed_s: float
    moved: float
    balance: float


def joining(world: World, seed: int, instances: int, added: int = 1, functions: int = FUNCTIONS) -> Joined:
    """So many functions join at once, to make `functions` of them, while so many instances run."""
    clock = Clock()
    fleet = Fleet(clock, replace(world, seed=seed))
    galaxy = Galaxy(fleet, replace(FULL, schedule=functions - added))
    fleet.system = galaxy
    for arrival in cold_starts(2000.0, instances, instances, seed):
        clock.at(arrival.at, lambda arrival=arrival: fleet.arrive(arrival))  # type: ignore[misc]
    clock.run(STANDS_S)
    before = owners(galaxy.view, "schedule")
    began = clock.now
    for number in range(functions - added, functions):
        name = FunctionID(f"schedule-{number}")
        galaxy.boot("schedule", name)
        galaxy.controller.join(galaxy.functions[name])
    handed_s = consistent_s = None
    while handed_s is None or consistent_s is None:
        clock.run(clock.now + STEP_S)
        if clock.now > began + PATIENCE_S:
            raise RuntimeError(f"{added} joined, and not everybody agrees within {PATIENCE_S:g} s")
        if consistent_s is None and galaxy.controller.settled_at is not None:
            consistent_s = galaxy.controller.settled_at - began
        if handed_s is None and _handed(galaxy):
            handed_s = clock.now - began
    after = owners(galaxy.view, "schedule")
    shares = loads(after, [m.id for m in galaxy.view.of("schedule")])
    nodes = len(after)
    return Joined(
        consistent_s, handed_s, len(moved(before, after)) / nodes, max(shares) * len(shares) / nodes
    )


def _handed(galaxy: Galaxy) -> bool:
    """Each node of the controller's view is with its owner, and with nobody else."""
    wanted = owners(galaxy.controller.membership.view, "schedule")
    held = [(node, name) for name, f in galaxy.schedulers.items() for node in f.handover.terms]
    return len(held) == len(wanted) and all(wanted.get(node) == name for node, name in held)


def rows(world: World, seed: int) -> Iterator[Row]:
    """One thing varied at a time."""
    for instances in (100, 400, 1600):
        yield from _of(world, seed, instances, 1)
    for added in (2, 4, 8):
        yield from _of(world, seed, 400, added)
    for nodes in (world.nodes // 2, world.nodes * 2, world.nodes * 4):
        yield from _of(replace(world, nodes=nodes), seed, 400, 1)


def _of(world: World, seed: int, instances: int, added: int) -> Iterator[Row]:
    joined = joining(world, seed, instances, added)
    said = f"{said_of(world, seed)}; {instances} instances, {added} of {FUNCTIONS} functions join at once"
    mean = world.nodes / FUNCTIONS
    figures: tuple[tuple[str, float, float, str, str], ...] = (
        ("time to a consistent view", joined.consistent_s, PUBLISHED_S, "published", "s"),
        ("time until every node is handed over", joined.handed_s, PUBLISHED_S, "published", "s"),
        ("share of the nodes that move", joined.moved, MOVED * added / (FUNCTIONS - added), "bound", ""),
        ("largest partition over the mean", joined.balance, max(BALANCE, ceil(mean) / mean), "bound", ""),
    )
    better: Literal["lower"] = "lower"
    for metric, ours, baseline, name, unit in figures:
        yield Row(CLAIM, metric, ours, baseline, name, unit, better, said)
