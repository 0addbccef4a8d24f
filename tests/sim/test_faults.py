"""Faults in virtual time: invariants hold under any drawn schedule, and the same one is the same run."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kserve_ext.core.dispatch.leases import Leases
from kserve_ext.sim.clock import Clock
from kserve_ext.sim.faults import CONTROLLER, Fault, Faults, drawn
from kserve_ext.sim.fleet import Fleet, World
from kserve_ext.sim.layout import Layout
from kserve_ext.sim.systems.galaxy import Galaxy
from kserve_ext.sim.traces import Arrival

LAYOUT = Layout(4, 4, 3)
WORLD = World(nodes=10, room=12, start_s=0.1)


def run(
    seed: int,
    faults: list[Fault],
    seconds: float = 20.0,
    *,
    layout: Layout = LAYOUT,
    rate: float = 15.0,
    longest_s: float = 0.6,
) -> tuple[Fleet, Faults]:
    clock = Clock()
    fleet = Fleet(clock, World(WORLD.nodes, WORLD.room, WORLD.start_s, seed=seed))
    galaxy = Galaxy(fleet, layout)
    fleet.system = galaxy
    happening = Faults(galaxy, faults, seed)
    rng, at = random.Random(seed), 0.5
    while (at := at + rng.expovariate(rate)) < seconds:
        arrival = Arrival(at, f"f{rng.randrange(8)}", seconds=rng.uniform(0.01, longest_s))
        clock.at(at, lambda arrival=arrival: fleet.arrive(arrival))  # type: ignore[misc]
    clock.run(seconds + 100.0)
    happening.finish()
    return fleet, happening


@pytest.mark.parametrize("seed", [*range(6), 31, 86])
def test_invariants_hold_whatever_dies_pauses_or_is_lost(seed: int) -> None:
    _, happening = run(seed, drawn(seed, LAYOUT, WORLD.nodes, 18.0, 8))
    assert happening.violations == []


@pytest.mark.parametrize("seed", range(6))
def test_they_hold_where_functions_are_cut_apart_and_the_controller_stands_still(seed: int) -> None:
    faults = drawn(seed, LAYOUT, WORLD.nodes, 18.0, 4, apart=8)
    assert {"pause", "apart"} <= {f.what for f in faults}
    _, happening = run(seed, faults)
    assert happening.violations == []


@pytest.mark.parametrize("seed", range(6))
def test_what_a_paused_shard_has_under_way_is_known_to_a_home_that_begins_after_it_left(seed: int) -> None:
    rng = random.Random(f"pair/{seed}")
    faults: list[Fault] = []
    for at in (2.0, 11.0):
        one, other = rng.sample(range(LAYOUT.dispatch), 2)
        faults.append(Fault(at, "pause", f"dispatch-{one}", 6.0))
        faults.append(Fault(at + 0.1, "kill", f"dispatch-{other}", rng.uniform(3.2, 5.0)))
    _, happening = run(seed, faults, layout=replace(LAYOUT, together=True), rate=4.0, longest_s=9.0)
    assert happening.violations == []


def test_a_controller_that_stands_still_for_longer_than_its_lease_has_a_successor() -> None:
    shown = []
    for seconds in (2.0, 8.0):
        clock = Clock()
        galaxy = Galaxy(Fleet(clock, WORLD), LAYOUT)
        happening = Faults(galaxy, [Fault(1.0, "pause", CONTROLLER, seconds)], 0)
        before, epoch = galaxy.controller.process, galaxy.controller.membership.epoch
        clock.run(12.0)
        assert happening.violations == []
        shown.append((galaxy.controller.process is before, galaxy.controller.membership.epoch > epoch))
        assert all(known == galaxy.controller.membership.epoch for known in galaxy.controller.shown.values())
        assert not galaxy.controller.membership.removed, "nobody was silent, but it"
    assert shown == [(True, False), (False, True)]


def test_the_same_schedule_is_the_same_run() -> None:
    def story() -> tuple[list[float | None], dict[str, int]]:
        fleet, _ = run(3, drawn(3, LAYOUT, WORLD.nodes, 6.0, 5), seconds=8.0)
        return [r.began for r in fleet.requests], fleet.counts

    assert story() == story()


@pytest.mark.parametrize("who", ["schedule-0", "cluster-mgr-1", CONTROLLER])
def test_no_request_is_refused_when_anything_but_a_dispatch_function_dies(who: str) -> None:
    fleet, happening = run(1, [Fault(3.0, "kill", who, 2.0)], seconds=8.0)
    assert happening.violations == []
    assert not fleet.counts.get("refused")


def test_a_dispatch_function_that_dies_resets_its_own_requests_only() -> None:
    fleet, happening = run(1, [Fault(3.0, "kill", "dispatch-1", 2.0)], seconds=8.0)
    assert happening.violations == []
    reset = [r for r in fleet.requests if r.refused]
    assert all(r.at <= 3.0 for r in reset)
    assert len(reset) < 10


def test_an_instance_that_is_granted_to_two_shards_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "_free", lambda self, usable, frozen: dict.fromkeys(usable, self.limit))
    _, happening = run(1, [], seconds=4.0)
    assert any("slots may be used" in violation for violation in happening.violations)
    assert any("served another" in violation for violation in happening.violations)


def test_an_instance_that_no_home_knows_of_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faults, "_known", lambda self, instance, key: False)
    _, happening = run(1, [], seconds=4.0)
    assert any("no home" in violation for violation in happening.violations)
