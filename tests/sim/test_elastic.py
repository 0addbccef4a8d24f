"""A control plane that scales itself, in virtual time: it grows under a burst, goes back, and loses nothing."""

from __future__ import annotations

import pytest

from kserve_ext.core.control.scaling import Pace
from kserve_ext.sim import bursts
from kserve_ext.sim.clock import Clock
from kserve_ext.sim.elastic import Run, measured, of_all, only
from kserve_ext.sim.fleet import Fleet, World
from kserve_ext.sim.layout import Layout
from kserve_ext.sim.parts.network import Network
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.traces import Arrival

WORLD = World(nodes=12, start_s=0.05)
SHAPE = bursts.Shape(
    seconds=50.0, bursts=1, functions=12, base=0.2, peak=200.0, rise_s=6.0, hold_s=3.0, fall_s=4.0
)
#: A last one when all is long over: until then it has time to go back.
ARRIVALS = [*bursts.arrivals(SHAPE), Arrival(60.0, "function-0000", seconds=0.1)]
WEIGHT = 1500.0
PACE = Pace(stable_s=8.0, shrink_s=1.0)


@pytest.fixture(scope="module")
def elastic() -> Run:
    return measured("elastic", of_all(1, 4), ARRIVALS, WORLD, weight=WEIGHT, pace=PACE)


def test_it_grows_and_goes_back_and_every_request_is_served(elastic: Run) -> None:
    assert elastic.result.begun == len(ARRIVALS)
    assert elastic.result.counts.get("refused", 0) == 0
    assert elastic.result.counts["scale-outs"] >= 1
    assert elastic.most["dispatch"] > 1
    assert elastic.ended >= 1


def test_it_holds_less_than_the_most_and_waits_less_than_the_least(elastic: Run) -> None:
    most = measured("most", of_all(4, 4), ARRIVALS, WORLD, weight=WEIGHT, pace=PACE)
    least = measured("least", of_all(1, 1), ARRIVALS, WORLD, weight=WEIGHT, pace=PACE)
    assert elastic.function_seconds < most.function_seconds
    assert elastic.result.p99 < least.result.p99
    assert elastic.result.p99 < 1.5 * most.result.p99, (
        "it came late: twice as much where waves don't become larger"
    )


def test_one_kind_alone_is_all_that_grows_and_a_run_can_be_repeated() -> None:
    alone = measured("schedule", only("schedule"), ARRIVALS, WORLD, weight=WEIGHT, pace=PACE)
    assert alone.most["dispatch"] == alone.most["cluster_mgr"] == 1
    assert alone == measured("schedule", only("schedule"), ARRIVALS, WORLD, weight=WEIGHT, pace=PACE)


def test_what_requests_do_not_bring_costs_no_more_where_each_stands_for_many() -> None:
    """Nodes are as many as before, and so are looks at them and questions to them."""
    fleet = Fleet(Clock(), WORLD)
    one, many = Network(fleet), Network(fleet, weight=WEIGHT)
    for kind in ("candidate", "claim", "node-recall", "node-said", "tick", "update", "view-schedule"):
        assert many.cost(kind, False) == one.cost(kind, False)
    for kind in ("submit", "schedule", "start", "probed", "told"):
        assert many.cost(kind, False) == pytest.approx(WEIGHT * one.cost(kind, False))


def test_a_schedule_function_that_begins_is_not_busy_with_its_nodes_for_long() -> None:
    clock = Clock()
    galaxy = Galaxy(Fleet(clock, World(nodes=100)), Layout(1, 1, 1, weight=WEIGHT))
    clock.run(0.1)
    assert len(galaxy.schedulers) == 1
    for function in galaxy.schedulers.values():
        assert len(function.machine.partition.candidates()) == 100
        assert function.process.core.busy < 0.02
