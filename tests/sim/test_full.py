"""A full cluster with the real homes, Schedule functions and node agents: who runs, who waits, who makes room."""

from __future__ import annotations

import pytest

from kserve_ext.core.facts import Command, Hold, Model, Revision, Scale
from kserve_ext.core.ids import RevisionKey
from kserve_ext.sim.clock import Clock
from kserve_ext.sim.fleet import Fleet, World
from kserve_ext.sim.layout import Layout
from kserve_ext.sim.parts.node import NEEDS
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.traces import Arrival

HIGH = 9


class Classes(Galaxy):
    """Services whose names begin with "high" preempt the others; these keep one instance where they say so."""

    def _apply(self, key: RevisionKey, function: str) -> None:
        high = function.startswith("high")
        scale = Scale(min=int(function.startswith("kept")), initial=0, target=1.0, utilization=1.0)
        hold = Hold(3600.0, 1_000_000, 1 << 40)
        command = Command((), drain_s=1.0, start_timeout_s=3600.0)
        revision = Revision(key, function, 1, command, Model(), NEEDS, scale, hold, concurrency=1)
        self.revisions[key] = revision._replace(priority=HIGH if high else 0, preempts=high)
        home = self.home_of(revision.home_key)
        assert home is not None
        self.shards[home].found(self.revisions[key])


def run(arrivals: list[Arrival], seconds: float, world: World, layout: Layout) -> tuple[Fleet, Classes]:
    clock = Clock()
    fleet = Fleet(clock, world)
    galaxy = Classes(fleet, layout)
    fleet.system = galaxy
    for arrival in arrivals:
        clock.at(arrival.at, lambda arrival=arrival: fleet.arrive(arrival))  # type: ignore[misc]
    clock.run(seconds)
    for agent in galaxy.nodes.values():
        agent.machine.check()
    for shard in galaxy.shards.values():
        for home in shard.homes.values():
            home.check()
    return fleet, galaxy


@pytest.mark.parametrize("layout", [Layout(1, 1, 1), Layout(2, 2, 2)], ids=["one of each", "two of each"])
def test_a_higher_class_runs_soon_and_what_it_took_comes_back(layout: Layout) -> None:
    """Six slots and a minute of work for them of the lower class; then two requests of the higher one."""
    names = ("low0", "low1", "kept")
    crowd = [Arrival(0.5 + k / 1000, names[k % 3], seconds=3.0) for k in range(120)]
    vips = [Arrival(10.0, "high", seconds=20.0) for _ in range(2)]
    fleet, galaxy = run([*crowd, *vips], 300.0, World(nodes=3, room=2), layout)
    assert all(request.ended is not None for request in fleet.requests), "nobody starves"
    high = [r.latency for r in fleet.requests if r.function == "high"]
    assert max(high) < 8.0, "one request of the lower class is waited for, not all of them"
    preempted = sum(s.machine.line.preempted_total for s in galaxy.schedulers.values())
    assert 1 <= preempted <= 4, "and room isn't made again and again"
    assert not any(s.machine.line.waiters for s in galaxy.schedulers.values())


def test_one_after_the_other_in_order_at_two_slots() -> None:
    """Each service keeps its slot until it has scaled to zero; then the one that has waited longest has it."""
    asked = [Arrival(0.5 + k, f"f{k}", seconds=4.0) for k in range(5)]
    fleet, _ = run(asked, 300.0, World(nodes=1, room=2), Layout(1, 1, 1))
    began = [r.began for r in fleet.requests]
    assert all(r.ended is not None for r in fleet.requests)
    assert began == sorted(b for b in began if b is not None)
