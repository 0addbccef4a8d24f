"""Rows of claims, runs and workloads: what is counted, and of which requests."""

from __future__ import annotations

import pytest

from kserve_ext.sim import workloads
from kserve_ext.sim.fleet import World
from kserve_ext.sim.plots import Axis, Line, plot
from kserve_ext.sim.rows import Row
from kserve_ext.sim.runs import SYSTEMS, run
from kserve_ext.sim.traces import Arrival

SMALL = World(nodes=12, room=100, start_s=0.02, parallel_starts=100)


def row(ours: float, baseline: float, better: str) -> Row:
    return Row("c", "m", ours, baseline, "b", "s", better, "simulated")  # type: ignore[arg-type]


def test_a_change_is_how_much_lower_or_how_many_times_higher() -> None:
    assert row(1.0, 4.0, "lower").change == 0.75
    assert row(5.0, 4.0, "lower").change == -0.25
    assert row(8.0, 4.0, "higher").change == 2.0
    assert row(8.0, 0.0, "higher").change is None


def test_requests_before_the_measured_ones_make_the_scene_only() -> None:
    arrivals = [
        Arrival(1.0, "f", seconds=100.0),
        Arrival(2.0, "g", seconds=1.0),
        Arrival(2.0, "g", seconds=1.0),
    ]
    result = run(SYSTEMS["ray"], arrivals, World(nodes=2, room=2, start_s=0.5), 20.0, measured_from=1)
    assert (result.requests, result.begun) == (2, 2)
    assert result.p50 == pytest.approx(0.5, abs=0.01)


def test_one_that_never_begins_has_waited_to_the_end() -> None:
    arrivals = [Arrival(1.0, f"f{k}", seconds=1e6) for k in range(3)]
    result = run(SYSTEMS["ray"], arrivals, World(nodes=1, room=2), patience_s=10.0)
    assert (result.begun, result.p99) == (2, 10.0)
    assert result.timeline[-1].waiting == 1


def test_a_nearly_full_cluster_has_room_for_what_is_measured() -> None:
    world, arrivals, filling = workloads.nearly_full(0.9, World(nodes=10), 0)
    assert filling == 72
    assert len(arrivals) == world.nodes * world.room == 80
    result = run(SYSTEMS["galaxy"], arrivals, world, 20.0, filling)
    assert (result.requests, result.begun) == (8, 8)


def test_load_multiplies_a_trace_and_a_fraction_thins_it() -> None:
    trace = [Arrival(float(k)) for k in range(1000)]
    assert list(workloads.scaled(trace, 1.0, 0)) == trace
    assert len(list(workloads.scaled(trace, 3.0, 0))) == 3000
    thinned = list(workloads.scaled(trace, 0.25, 0))
    assert len(thinned) == pytest.approx(250, rel=0.2)
    assert thinned == list(workloads.scaled(trace, 0.25, 0))


def test_a_plot_leaves_out_what_a_logarithm_cannot_show() -> None:
    text = plot("t <x>", Axis("x", log=True), Axis("y"), [Line("a & b", ((0.0, 1.0), (10.0, 2.0)))])
    assert "t &lt;x&gt;" in text
    assert "a &amp; b" in text
    assert text.count("<circle") == 1
