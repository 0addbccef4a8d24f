"""Costs against size, and recovery: what is counted, and when something counts as recovered."""

from __future__ import annotations

import pytest

from kserve_ext.core.ids import FunctionID
from kserve_ext.sim import recovery, scale
from kserve_ext.sim.fleet import World
from kserve_ext.sim.layout import Layout

SMALL = World(nodes=12, room=100, start_s=0.02, parallel_starts=100)
LAYOUT = Layout(3, 3, 3)


def test_a_line_is_no_way_off_and_a_square_is() -> None:
    assert scale.off_the_line([(x, 2.0 + 3.0 * x) for x in (1, 5, 9)]) == pytest.approx(0.0)
    assert scale.off_the_line([(x, float(x * x)) for x in (1, 10, 100)]) > 0.5


def test_an_idle_cluster_costs_by_its_nodes_and_a_busy_one_more() -> None:
    few, many = (scale.steady(World(nodes=n), LAYOUT, 0) for n in (10, 100))
    assert few.core_s < many.core_s < 20 * few.core_s
    assert scale.steady(World(nodes=10), LAYOUT, 0, instances=20).core_s > few.core_s


def test_a_dead_schedule_functions_nodes_are_placed_on_again_without_a_request_lost() -> None:
    who = FunctionID("schedule-0")
    found = recovery.measured(who, SMALL, 0, LAYOUT, lambda galaxy: recovery.placed_again(who, galaxy))
    assert found.violations == ()
    assert found.seconds is not None
    assert found.seconds > 0.3, "its connection has to be lost for so long first"
    assert found.refused == 0


def test_a_dead_homes_revisions_have_homes_again() -> None:
    who = FunctionID("dispatch-0")
    found = recovery.measured(who, SMALL, 0, LAYOUT, lambda galaxy: recovery.served_again(who, galaxy))
    assert found.violations == ()
    assert found.seconds is not None
    assert found.longest_wait < 2.0
