"""How long it takes until all is well again after each kind of kill, as rows.

Requests that need an instance each come at RATE all the time, for FUNCTIONS functions. What counts as recovered is
said of each kind; the dead process comes back only after that, so that the figure is that of those that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from kserve_ext.core.ids import FunctionID, NodeID, RevisionKey
from kserve_ext.sim.clock import Clock
from kserve_ext.sim.faults import CONTROLLER, Fault, Faults
from kserve_ext.sim.fleet import Fleet, World
from kserve_ext.sim.layout import FULL, Layout
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.workloads import cold_starts

RATE: Final = 400.0
FUNCTIONS: Final = 140
DIES_AT: Final = 2.0
LONG_S: Final = 30.0  # it stays away
PATIENCE_S: Final = 10.0
POLL_S: Final = 0.002

Recovered = Callable[[], bool]


@dataclass(frozen=True)
class Recovery:
    """Seconds from the kill; None: not within PATIENCE_S."""

    seconds: float | None
    longest_wait: float  # of a request that arrived after the kill, the start of its instance included
    refused: int
    violations: tuple[str, ...]


def measured(
    who: str,
    world: World,
    seed: int,
    layout: Layout,
    until: Callable[[Galaxy], Recovered],
    what: str = "kill",
) -> Recovery:
    clock = Clock()
    fleet = Fleet(clock, replace(world, seed=seed))
    galaxy = Galaxy(fleet, layout)
    fleet.system = galaxy
    fault = Fault(DIES_AT, "cut" if what == "cut" else "kill", who, LONG_S)
    happening = Faults(galaxy, [fault], seed)
    for arrival in cold_starts(RATE, int(RATE * 2.0 * DIES_AT), FUNCTIONS, seed, at=0.5):
        clock.at(arrival.at, lambda arrival=arrival: fleet.arrive(arrival))  # type: ignore[misc]
    clock.run(DIES_AT - POLL_S / 2)
    recovered = until(galaxy)
    seconds: float | None = None
    while clock.now < DIES_AT + PATIENCE_S:
        clock.run(clock.now + POLL_S)
        if seconds is None and clock.now > DIES_AT and recovered():
            seconds = clock.now - DIES_AT
        if seconds is not None and clock.now > 2.5 * DIES_AT:
            break
    happening.watch()
    after = [r for r in fleet.requests if r.at > DIES_AT]
    longest = max((clock.now if r.began is None else r.began) - r.at for r in after)
    return Recovery(seconds, longest, fleet.counts.get("refused", 0), tuple(happening.violations))


# --- what is meant by recovered


def served_again(who: FunctionID, galaxy: Galaxy) -> Recovered:
    """Every revision whose home it was has another one, which knows what runs and starts what is missing."""
    mine = [(r.home_key, key) for key, r in galaxy.revisions.items() if galaxy.home_of(r.home_key) == who]

    def opened(home_key: str, key: RevisionKey) -> bool:
        name = galaxy.home_of(home_key)
        home = galaxy.shards[name].homes.get(home_key) if name is not None and name != who else None
        return home is not None and key in home.revisions and home.revisions[key].open

    return lambda: all(opened(*of) for of in mine)


def placed_again(who: FunctionID, galaxy: Galaxy) -> Recovered:
    """Another Schedule function has each of its nodes, knows its status, and would place on it."""
    nodes = {c.status.node for c in galaxy.schedulers[who].machine.partition.candidates()}

    def recovered() -> bool:
        others = (function.machine.partition for name, function in galaxy.schedulers.items() if name != who)
        return nodes <= {c.status.node for partition in others for c in partition.candidates()}

    return recovered


def heard_again(who: FunctionID, galaxy: Galaxy) -> Recovered:
    """Each of its nodes has been heard by another one."""
    nodes = [status.node for status, _ in galaxy.managers[who].nodes()]

    def recovered() -> bool:
        others = (machine.nodes() for name, machine in galaxy.managers.items() if name != who)
        heard = {status.node for of_one in others for status, at in of_one if at > DIES_AT}
        return heard.issuperset(nodes)

    return recovered


def viewed_again(galaxy: Galaxy) -> Recovered:
    """All have acknowledged the view of the next controller."""
    first = galaxy.controller.membership

    def recovered() -> bool:
        controller = galaxy.controller
        return controller.membership is not first and controller.settled_at is not None

    return recovered


def without(who: NodeID, galaxy: Galaxy) -> Recovered:
    """The view is without it."""
    return lambda: galaxy.view.member(FunctionID(who)) is None


def rows(world: World, seed: int, layout: Layout = FULL) -> Iterator[Row]:
    dispatch, schedule, manager = (
        FunctionID("dispatch-0"),
        FunctionID("schedule-0"),
        FunctionID("cluster-mgr-0"),
    )
    node = NodeID("node-0000")
    kinds: tuple[tuple[str, str, str, Callable[[Galaxy], Recovered]], ...] = (
        (
            "Dispatch function killed",
            "its revisions have homes again",
            dispatch,
            lambda g: served_again(dispatch, g),
        ),
        (
            "Schedule function killed",
            "its nodes can be placed on again",
            schedule,
            lambda g: placed_again(schedule, g),
        ),
        (
            "ClusterMgr function killed",
            "its nodes are heard again",
            manager,
            lambda g: heard_again(manager, g),
        ),
        ("controller killed", "all have the view of the next one", CONTROLLER, viewed_again),
        ("node cut off", "the view is without it", node, lambda g: without(node, g)),
    )
    said = f"{said_of(world, seed)}; {RATE:g} cold starts/s of {FUNCTIONS} functions"
    for kill, meaning, who, until in kinds:
        found = measured(who, world, seed, layout, until, "cut" if who == node else "kill")
        if found.violations:
            raise RuntimeError(f"{kill}: {'; '.join(found.violations)}")
        conditions = f"{said}; {found.refused} requests reset"
        for metric, figure in (
            (f"{kill}: until {meaning}", found.seconds),
            (f"{kill}: longest wait of a request that came after", found.longest_wait),
        ):
            yield Row("recovery", metric, figure, None, "", "s", "lower", conditions)
