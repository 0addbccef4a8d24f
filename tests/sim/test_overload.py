"""A control plane with more to do than it can: what it was asked for is done when the load is over, and soon."""

from __future__ import annotations

import pytest

from kserve_ext.sim import bursts
from kserve_ext.sim.elastic import Run, measured, of_all
from kserve_ext.sim.fleet import World

RECOVERED_S = 3.0
#: what has no instance by then starts with all others that wait, a few a second at first (core/dispatch/lag.py)
OVER_S = 10.0
#: one request stands for so many, so that one of each kind has as much to do with requests alone as it can at most
WEIGHT = 350.0


def overloaded(seed: int, count: int, weight: float) -> Run:
    shape = bursts.Shape(
        seconds=60.0,
        functions=40,
        base=0.5,
        peak=200.0,
        bursts=1,
        rise_s=5.0,
        hold_s=10.0,
        fall_s=15.0,
        seed=seed,
    )
    world = World(nodes=30, seed=seed)
    return measured("overloaded", of_all(count, count), list(bursts.arrivals(shape)), world, weight=weight)


def most_waiting(run: Run) -> int:
    return max(second.waiting for second in run.result.timeline)


def waiting_after(run: Run, seconds: float) -> int:
    """Requests that wait so long after the last second with more than the trough's load."""
    over = max(second.at for second in run.result.timeline if second.arrived > 10)
    return next((s.waiting for s in run.result.timeline if s.at >= over + seconds), 0)


@pytest.mark.parametrize("seed", range(3))
def test_one_of_each_kind_has_recovered_when_the_load_is_over(seed: int) -> None:
    run = overloaded(seed, 1, WEIGHT)
    assert most_waiting(run) > 100, "it was no overload"
    assert run.result.begun == run.result.requests
    assert waiting_after(run, RECOVERED_S) <= most_waiting(run) / 10
    assert waiting_after(run, OVER_S) <= 3  # those that have just come
    assert run.result.starts < run.result.requests / 2, "what is idle is used, not stopped and started again"


def test_so_have_two_where_a_home_is_not_where_its_requests_are() -> None:
    run = overloaded(0, 2, 2 * WEIGHT)
    assert max(second.waiting for second in run.result.timeline) > 100, "it was no overload"
    assert run.result.begun == run.result.requests
    assert waiting_after(run, RECOVERED_S) <= 3
