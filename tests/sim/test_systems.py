"""Virtual time, the fleet's rules, and each simulated system at a figure that is known of the real one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.sim.clock import Clock, Core
from kserve_ext.sim.fleet import Fleet, System, World
from kserve_ext.sim.systems.atoll import Atoll
from kserve_ext.sim.systems.central import Central
from kserve_ext.sim.systems.knative import STOCK, TUNED, Knative
from kserve_ext.sim.systems.ray import Ray
from kserve_ext.sim.systems.sparrow import Sparrow
from kserve_ext.sim.traces import Arrival

SYSTEMS: dict[str, Callable[[Fleet], System]] = {
    "knative": lambda fleet: Knative(fleet, STOCK),
    "tuned knative": lambda fleet: Knative(fleet, TUNED, "tuned knative"),
    "central": Central,
    "sparrow": Sparrow,
    "ray": Ray,
    "atoll": Atoll,
}


def run(make: Callable[[Fleet], System], arrivals: list[Arrival], seconds: float, world: World) -> Fleet:
    clock = Clock()
    fleet = Fleet(clock, world)
    fleet.system = make(fleet)
    for arrival in arrivals:
        clock.at(arrival.at, lambda arrival=arrival: fleet.arrive(arrival))  # type: ignore[misc]
    clock.run(seconds)
    return fleet


def test_of_one_moment_what_was_asked_for_first_happens_first_and_time_never_goes_back() -> None:
    clock, seen = Clock(), list[tuple[str, float]]()
    clock.at(2.0, lambda: seen.append(("b", clock.now)))
    clock.at(1.0, lambda: clock.at(0.5, lambda: seen.append(("late", clock.now))))
    clock.at(2.0, lambda: seen.append(("c", clock.now)))
    clock.run(3.0)
    assert seen == [("late", 1.0), ("b", 2.0), ("c", 2.0)]
    assert clock.now == 3.0


def test_a_core_does_one_thing_at_a_time() -> None:
    clock, done = Clock(), list[float]()
    core = Core(clock)
    core.do(1.0, lambda: done.append(clock.now))
    core.do(0.5, lambda: done.append(clock.now))
    assert core.backlog == 1.5
    clock.run(10.0)
    core.do(0.25, lambda: done.append(clock.now))
    clock.run(20.0)
    assert done == [1.0, 1.5, 10.25]
    assert core.busy == 1.75


@pytest.mark.parametrize("name", SYSTEMS)
@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.sampled_from("abc"), st.floats(0.01, 3)), min_size=1, max_size=40
    ),
    st.integers(0, 3),
)
def test_every_request_is_served_once_and_no_node_is_overfull(
    name: str, asked: list[tuple[float, str, float]], seed: int
) -> None:
    arrivals = [Arrival(at, key, seconds=seconds) for at, key, seconds in sorted(asked)]
    fleet = run(SYSTEMS[name], arrivals, 600.0, World(nodes=4, room=3, seed=seed))
    assert all(request.ended is not None for request in fleet.requests)
    assert all(request.latency >= 0 for request in fleet.requests)
    assert all(len(node.instances) <= node.room for node in fleet.nodes)


def ready_per_s(fleet: Fleet) -> float:
    began = sorted(request.began for request in fleet.requests if request.began is not None)
    return (len(began) - 1) / (began[-1] - began[0])


def burst(count: int) -> list[Arrival]:
    return [Arrival(1.0, f"f{number}", seconds=30.0) for number in range(count)]


@pytest.mark.parametrize(
    ("name", "count", "per_second"),
    [("knative", 50, 4.8), ("tuned knative", 200, 50.0), ("central", 5000, 2500.0)],
)
def test_a_burst_over_many_functions_gets_ready_at_the_rate_that_is_known(
    name: str, count: int, per_second: float
) -> None:
    """Knative as shipped: measured on the real controllers; tuned, and Dirigent: as their authors report."""
    world = World(parallel_starts=100)
    fleet = run(SYSTEMS[name], burst(count), 60.0, world)
    assert ready_per_s(fleet) == pytest.approx(per_second, rel=0.15)
