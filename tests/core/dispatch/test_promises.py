"""Slots of instances that start: promised by home, and used at the word of a node."""

from __future__ import annotations

import pytest

from kserve_ext.core.dispatch.facts import GONE_S, LEASE_TTL_S, Grant
from kserve_ext.core.dispatch.fleet import Fleet
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.dispatch.leases import Leases
from kserve_ext.core.dispatch.shard import Shard
from kserve_ext.core.dispatch.throttler import HELD
from kserve_ext.core.facts import Instance, InstanceState
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from tests.core.dispatch.test_leases import A, B, S, demand
from tests.core.dispatch.test_shard import H0, KEY, shard_of
from tests.core.dispatch.test_throttler import Request
from tests.support.world import World
from tests.support.world_nodes import revision

D0, D1 = FunctionID("dispatch-0"), FunctionID("dispatch-1")
N0 = NodeID("node-0")


def promised(count: int, *, held: int = 1, concurrency: int = 1) -> Shard[Request]:
    """A shard that holds requests, and knows of an instance that starts."""
    shard = shard_of(concurrency=concurrency)
    for k in range(held):
        assert shard.submit(KEY, Request(k), 0.0) == HELD
    ((_, asked),) = shard.due(0.0)
    shard.grant(Grant(KEY, H0, 1, LEASE_TTL_S, ((A, "", count),), term=1, answers=asked.seq), 0.0)
    shard.answered(KEY, asked.seq, 0.0)
    assert list(shard.drain(KEY, 0.0)) == []
    return shard


def said(shard: Shard[Request], state: InstanceState, now: float) -> list[tuple[int, str]]:
    """A node's word of it, and where held requests went on that."""
    shard.announced(KEY, [Instance(A, KEY, N0, state, "a:80", epoch=1)], now)
    return [(request.id, tracker.addr) for request, tracker in shard.drain(KEY, now)]


def test_a_promise_is_a_lease_and_says_nothing_new_to_home() -> None:
    shard = promised(1)
    assert shard.due(0.1) == []
    assert shard.recall(2, [KEY], 0.1)[0].leases == ((A, 1),), "a new home must not give it to others"


def test_a_held_request_goes_at_the_word_of_the_node_and_no_more_than_was_promised() -> None:
    assert said(promised(2, held=3, concurrency=5), "ready", 0.1) == [(0, "a:80"), (1, "a:80")]


@pytest.mark.parametrize("ends", [False, True])
def test_the_word_of_the_node_may_come_before_the_promise(ends: bool) -> None:
    shard = shard_of(concurrency=1)
    assert shard.submit(KEY, Request(0), 0.0) == HELD
    ((_, asked),) = shard.due(0.0)
    assert said(shard, "ready", 0.0) == []
    if ends:
        assert said(shard, "gone", 0.1) == []
    shard.grant(Grant(KEY, H0, 1, LEASE_TTL_S, ((A, "", 1),), term=1, answers=asked.seq), 0.1)
    shard.answered(KEY, asked.seq, 0.1)
    went = [(request.id, tracker.addr) for request, tracker in shard.drain(KEY, 0.1)]
    assert went == ([] if ends else [(0, "a:80")])


@pytest.mark.parametrize("state", ["failed", "gone", "draining"])
def test_nothing_goes_to_one_that_ended_before_it_was_ready(state: InstanceState) -> None:
    shard = promised(1)
    assert said(shard, state, 0.1) == []
    assert said(shard, "ready", 0.2) == []


def test_a_promise_ends_with_the_lease() -> None:
    assert said(promised(1), "ready", LEASE_TTL_S) == []


def test_a_promise_that_is_not_said_again_is_taken_back() -> None:
    shard = promised(1)
    shard.grant(Grant(KEY, H0, 2, LEASE_TTL_S, (), term=1), 0.1)
    assert said(shard, "ready", 0.2) == []


def test_who_has_heard_of_the_node_already_goes_on_when_home_promises_again() -> None:
    shard = promised(1)
    assert said(shard, "ready", 0.1) == [(0, "a:80")]
    shard.grant(Grant(KEY, H0, 2, LEASE_TTL_S, ((A, "", 2),), term=1), 0.2)
    assert shard.submit(KEY, Request(9), 0.2) is shard.parts[KEY].throttler.trackers[A]


def test_the_next_request_is_asked_for_although_as_many_were_held_before() -> None:
    shard = promised(1, held=2)
    assert len(said(shard, "ready", 0.1)) == 1
    shard.due(0.1)
    shard.submit(KEY, Request(9), 0.1)
    ((_, asked),) = shard.due(0.1)
    assert (asked.held, asked.in_flight) == (2, 1)


def test_what_starts_is_promised_to_those_for_whom_nothing_is_free() -> None:
    leases = Leases(1, 0.0)
    leases.report(S[0], demand(1, wanted=1)._replace(waits_us=(10,)), 1, 0.0)
    leases.report(S[1], demand(1, wanted=1)._replace(waits_us=(30,)), 1, 0.0)
    assert leases.allot([A], (), 0.0, [B]) == S[:2]
    assert leases.accounts[S[1]].intended == {A: 1}, "who has waited longest has what can be used now"
    assert leases.accounts[S[0]].intended == {B: 1}
    leases.check([A, B])


def test_a_slot_that_comes_free_goes_to_who_has_waited_longest_whatever_was_promised() -> None:
    leases = Leases(1, 0.0)
    leases.report(S[0], demand(1, wanted=1)._replace(waits_us=(30,)), 1, 0.0)
    leases.allot([], (), 0.0, [A])
    assert leases.accounts[S[0]].intended == {A: 1}
    leases.report(S[1], demand(1, wanted=1)._replace(waits_us=(10,)), 1, 0.0)
    leases.allot([B], (), 0.0, [A])
    assert leases.accounts[S[0]].intended == {A: 1, B: 1}


def test_what_starts_when_a_home_takes_over_may_be_promised_to_a_shard_that_says_nothing() -> None:
    home = Home(D0, 2, lambda key: InstanceID("new"))
    home.view([N0], {D0: 1, D1: 1}, (), 0.0)
    home.add(revision(concurrency=1), False, (), 0.0)

    def has(state: InstanceState) -> tuple[Instance, ...]:
        return (Instance(A, KEY, N0, state, "a:80" if state == "ready" else "", epoch=1),)

    def slots_at(seq: int, now: float) -> list[InstanceID]:
        asked = demand(seq, wanted=1)._replace(term=2, granted=seq * 100)
        grant, _ = home.demand(D0, asked, now)
        return [i for i, _, n in grant.slots if n] if grant is not None else []

    home.node_says(KEY, N0, has("starting"), 0.0, 0.1)
    home.recalled(D0, [KEY], [], 0.1)
    assert slots_at(1, 0.2) == []
    home.observed(KEY, N0, has("ready"), False, 1.0)
    assert slots_at(2, GONE_S - 0.1) == [], "the former home may have promised it to the other shard"
    home.tick(GONE_S + 0.1)
    assert slots_at(3, GONE_S + 0.2) == [A]


def test_what_a_home_has_asked_for_itself_is_promised_by_nobody_else() -> None:
    fleet = Fleet()
    fleet.asked(A, 0.0)
    fleet.placed(A, N0, 0.1)
    fleet.observe([Instance(A, KEY, N0, "ready", "a:80", epoch=1)], N0, False, 1.0)
    fleet.observe([Instance(B, KEY, N0, "starting", "", epoch=1)], N0, False, 1.0)
    fleet.observe([Instance(B, KEY, N0, "ready", "b:80", epoch=1)], N0, False, 2.0)
    assert (fleet.known[A].inherited, fleet.known[B].inherited) == (False, True)
    assert fleet.known[B].ready_at == 2.0


def starting(shard: FunctionID) -> World:
    """One request at a shard, and an instance that is starting for it."""
    world = World(2, {N0: 4}, [revision(concurrency=1)])
    world.flush()
    world.request(shard)
    world.flush()
    return world


@pytest.mark.parametrize("shard", [D0, D1])
def test_a_request_does_not_wait_for_home_to_hear(shard: FunctionID) -> None:
    world = starting(shard)
    (run,) = world.all_running()
    world.make_ready(run)
    for _ in range(len(world.queue)):  # what the node says; nothing that follows from it
        world.deliver()
    assert world.requests[0].state == "sent"


@pytest.mark.parametrize("shard", [D0, D1])
def test_home_says_nothing_where_the_node_has_said_it(shard: FunctionID) -> None:
    world = starting(shard)
    (run,) = world.all_running()
    said = len(world.log)
    world.make_ready(run)
    world.flush()
    assert not [line for line in world.log[said:] if "grants" in line and f"{run.id}:1" in line][1:]
    home = world.procs[FunctionID(str(world.home_of("ns/a")))].homes["ns/a"].revisions[KEY]
    assert home.fleet.known[run.id].told == (shard,)


@pytest.mark.parametrize("shard", [D0, D1])
def test_home_says_it_where_the_word_of_the_node_is_lost(shard: FunctionID) -> None:
    world = starting(shard)
    (run,) = world.all_running()
    world.make_ready(run)
    while len(world.queue) > 1:
        world.lose(len(world.queue) - 1)  # the node tells home first
    world.pass_time(1.0)
    assert world.requests[0].state == "sent"
    world.check()
