"""Our control plane in the simulator: every request is served, the same run is the same bytes, ablations cost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.sim.clock import Clock
from kserve_ext.sim.fleet import Fleet, World
from kserve_ext.sim.layout import ABLATIONS, FULL, Layout
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.traces import Arrival

SMALL = Layout(2, 2, 2)


def run(
    arrivals: list[Arrival], seconds: float, world: World, layout: Layout = SMALL
) -> tuple[Fleet, Galaxy]:
    clock = Clock()
    fleet = Fleet(clock, world)
    galaxy = Galaxy(fleet, layout)
    fleet.system = galaxy
    for arrival in arrivals:
        clock.at(arrival.at, lambda arrival=arrival: fleet.arrive(arrival))  # type: ignore[misc]
    clock.run(seconds)
    return fleet, galaxy


def burst(rate: float, seconds: float, functions: int, work_s: float) -> list[Arrival]:
    rng, out, at = random.Random(1), list[Arrival](), 0.5
    while at < 0.5 + seconds:
        at += rng.expovariate(rate)
        out.append(Arrival(at, f"f{rng.randrange(functions)}", seconds=work_s))
    return out


def latency(fleet: Fleet, share: float) -> float:
    waited = sorted(request.latency for request in fleet.requests)
    return waited[int(len(waited) * share)]


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.sampled_from("abc"), st.floats(0.01, 3)), min_size=1, max_size=40
    ),
    st.integers(0, 3),
)
def test_every_request_is_served_once_and_no_node_is_overfull(
    asked: list[tuple[float, str, float]], seed: int
) -> None:
    arrivals = [Arrival(at, key, seconds=seconds) for at, key, seconds in sorted(asked)]
    fleet, galaxy = run(arrivals, 300.0, World(nodes=4, room=3, seed=seed))
    assert all(request.ended is not None for request in fleet.requests)
    assert not fleet.counts.get("refused")
    for node, agent in zip(fleet.nodes, galaxy.nodes.values(), strict=True):
        assert len(node.instances) <= node.room
        agent.machine.check()
    for shard in galaxy.shards.values():
        for home in shard.homes.values():
            home.check()


def test_everything_ends_when_nobody_asks_and_nothing_leaks() -> None:
    fleet, galaxy = run(burst(50, 2, 5, 0.1), 140.0, World(nodes=6, room=20))
    assert all(request.ended is not None for request in fleet.requests)
    assert not any(node.instances for node in fleet.nodes)
    assert all(agent.machine.ledger.free == agent.machine.ledger.capacity for agent in galaxy.nodes.values())


def test_the_same_seed_is_the_same_run_and_another_one_is_not() -> None:
    def story(seed: int) -> tuple[list[float], dict[str, int], list[float]]:
        fleet, galaxy = run(burst(200, 0.5, 20, 0.05), 4.0, World(nodes=12, room=10, seed=seed))
        return (
            [request.latency for request in fleet.requests],
            fleet.counts,
            [process.core.busy for process in galaxy.processes.values()],
        )

    assert story(1) == story(1) != story(2)


def test_every_admission_of_the_nodes_is_an_instance_of_the_fleet() -> None:
    fleet, galaxy = run(burst(500, 0.5, 50, 30.0), 3.0, World(nodes=12, room=100))
    admitted = sum(agent.machine.admitted_total for agent in galaxy.nodes.values())
    assert admitted == fleet.counts["starts"] == len(fleet.requests)


def test_standby_slots_start_at_once_until_they_are_used_up() -> None:
    arrivals = [Arrival(1.0, f"f{k}", seconds=5.0) for k in range(6)]
    fleet, _ = run(arrivals, 4.0, World(nodes=2, room=10), replace(SMALL, standby=2))
    waited = sorted(request.latency for request in fleet.requests)
    assert waited[3] < 0.1 < 0.5 < waited[4]


@pytest.mark.parametrize("without", ["connection_cache", "probe_cache"])
def test_what_is_left_out_costs(without: str) -> None:
    world = World(nodes=12, room=100, start_s=0.01)
    full, _ = run(burst(300, 0.5, 50, 30.0), 3.0, world)
    less, _ = run(burst(300, 0.5, 50, 30.0), 3.0, world, replace(SMALL, **{without: False}))
    assert latency(less, 0.5) > latency(full, 0.5)
    assert less.counts["messages"] > full.counts["messages"]


def test_ablations_are_those_that_the_design_names() -> None:
    assert list(ABLATIONS) == ["G_1", "G_8", "G_35", "G_35-C", "full"]
    assert ABLATIONS["full"] == FULL
