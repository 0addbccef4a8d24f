"""When a shard speaks to homes, and whom it obeys."""

from __future__ import annotations

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, QUIET_S, REPORT_S, Grant
from kserve_ext.core.dispatch.shard import AT_ONCE, KEEP_TERMS, LEAST_RETRY_S, Shard
from kserve_ext.core.dispatch.throttler import HELD, Tracker
from kserve_ext.core.facts import Instance
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from tests.core.dispatch.test_throttler import Request
from tests.support.world import World
from tests.support.world_nodes import revision

KEY = revision().key
H0, H1 = FunctionID("dispatch-0"), FunctionID("dispatch-1")
A, B = InstanceID("a"), InstanceID("b")


def shard_of(home: FunctionID = H0, concurrency: int = 2) -> Shard[Request]:
    shard: Shard[Request] = Shard(7)
    shard.view(1, lambda key: home)
    shard.know(revision(concurrency=concurrency), 0.0)
    return shard


def grant(
    seq: int, *slots: tuple[InstanceID, int], term: int = 1, answers: int = 0, home: FunctionID = H0
) -> Grant:
    named = tuple((i, f"{i}:80", n) for i, n in slots)
    return Grant(KEY, home, seq, LEASE_TTL_S, named, term=term, answers=answers, ages=(0.0,) * len(named))


def asked(shard: Shard[Request], now: float) -> tuple[FunctionID, int, int]:
    """The one Demand that is due: its home, seq and how much is wanted."""
    ((home, demand),) = shard.due(now)
    return home, demand.seq, demand.wanted


def served(shard: Shard[Request], seq: int, now: float, *slots: tuple[InstanceID, int]) -> list[InstanceID]:
    """Home's answer, and where held requests went on it."""
    shard.grant(grant(seq * 10, *slots, answers=seq), now)
    shard.answered(KEY, seq, now)
    return [tracker.id for _, tracker in shard.drain(KEY, now)]


def test_one_demand_under_way_and_the_next_when_more_is_wanted() -> None:
    shard = shard_of()
    assert shard.submit(KEY, Request(1), 0.0) == HELD
    assert asked(shard, 0.0) == (H0, 1, 1)
    shard.submit(KEY, Request(2), 0.0)
    assert shard.due(0.0) == []
    shard.answered(KEY, 1, 0.1)
    assert asked(shard, 0.1) == (H0, 2, 2)


def test_a_lost_demand_is_sent_again_with_all_that_was_counted() -> None:
    shard = shard_of()
    shard.submit(KEY, Request(1), 0.0)
    asked(shard, 0.0)
    shard.unanswered(KEY, 1, 1.0)
    assert shard.due(1.0) == []
    ((_, demand),) = shard.due(1.0 + LEAST_RETRY_S)
    assert (demand.seq, demand.arrived, demand.concurrency_seconds) == (2, 1, 1.0 + LEAST_RETRY_S)
    shard.answered(KEY, 2, 1.1)
    shard.tick(1.1 + REPORT_S)
    ((_, demand),) = shard.due(1.1 + REPORT_S)
    assert demand.arrived == 0


def test_held_requests_go_as_slots_come_and_leases_end() -> None:
    shard = shard_of()
    for k in range(3):
        shard.submit(KEY, Request(k), 0.0)
    _, seq, _ = asked(shard, 0.0)
    assert served(shard, seq, 0.1, (A, 2)) == [A, A]
    assert shard.finished(KEY, A, 0.2) == Request(2)
    shard.finished(KEY, A, 0.2)
    assert shard.submit(KEY, Request(9), LEASE_TTL_S) == HELD, "no answer since: the lease is over"


def test_slots_that_were_taken_back_are_reported_as_they_get_free() -> None:
    shard = shard_of()
    for k in range(2):
        shard.submit(KEY, Request(k), 0.0)
    _, seq, _ = asked(shard, 0.0)
    served(shard, seq, 0.0, (A, 2))
    for _, demand in shard.due(0.0):
        shard.answered(KEY, demand.seq, 0.0)
    shard.grant(grant(100, (A, 1)), 0.1)
    assert shard.due(0.1) == []
    shard.finished(KEY, A, 0.2)
    ((_, demand),) = shard.due(0.2)
    assert (demand.leases, demand.granted) == (((A, 1),), 100)


def test_a_home_of_an_older_term_is_not_obeyed_after_recall_or_view() -> None:
    shard = shard_of()
    shard.submit(KEY, Request(1), 0.0)
    _, seq, _ = asked(shard, 0.0)
    assert served(shard, seq, 0.0) == []
    (demand,) = shard.recall(5, [KEY], 0.0)
    assert (demand.term, demand.held) == (5, 1)
    shard.grant(grant(900, (A, 2), term=4), 0.0)
    assert list(shard.drain(KEY, 0.0)) == []
    shard.view(6, lambda key: H1)
    shard.grant(grant(901, (A, 2), term=5), 0.0)
    assert list(shard.drain(KEY, 0.0)) == []
    assert asked(shard, 0.0)[0] == H1


def test_an_expired_lease_is_neither_reported_nor_renewed_by_an_answer_without_a_grant() -> None:
    """It stood still, and another home has given its slots to others meanwhile."""
    shard = shard_of()
    for k in range(2):
        shard.submit(KEY, Request(k), 0.0)
    _, seq, _ = asked(shard, 0.0)
    assert served(shard, seq, 0.0, (A, 2)) == [A, A]
    shard.finished(KEY, A, 0.1)
    late = LEASE_TTL_S + 1.0
    shard.view(2, lambda key: H1)
    ((_, demand),) = shard.due(late)
    assert demand.leases == ((A, 1),), "the request that is there still"
    shard.answered(KEY, demand.seq, late)
    assert shard.submit(KEY, Request(9), late) == HELD


def test_a_recall_is_told_nothing_of_an_expired_lease() -> None:
    shard = shard_of()
    shard.submit(KEY, Request(1), 0.0)
    _, seq, _ = asked(shard, 0.0)
    assert served(shard, seq, 0.0, (A, 2)) == [A]
    shard.finished(KEY, A, 0.1)
    (demand,) = shard.recall(2, [KEY], LEASE_TTL_S + 1.0)
    assert demand.leases == ()


def test_what_was_leased_stays_usable_while_the_home_moves() -> None:
    shard = shard_of()
    shard.submit(KEY, Request(1), 0.0)
    _, seq, _ = asked(shard, 0.0)
    served(shard, seq, 0.0, (A, 2))
    shard.view(2, lambda key: H1)
    assert isinstance(shard.submit(KEY, Request(2), 0.1), Tracker)
    ((_, demand),) = shard.due(0.1)
    assert (demand.leases, demand.term) == (((A, 2),), 2)


def test_a_late_grant_changes_nothing() -> None:
    shard = shard_of()
    shard.submit(KEY, Request(1), 0.0)
    asked(shard, 0.0)
    shard.answered(KEY, 1, 0.0)
    shard.grant(grant(8, (A, 2)), 0.0)
    shard.grant(grant(7, (B, 2)), 0.0)
    assert [t.id for _, t in shard.drain(KEY, 0.0)] == [A]


def test_a_permanent_refusal_gives_back_all_that_is_held() -> None:
    shard = shard_of()
    for k in range(2):
        shard.submit(KEY, Request(k), 0.0)
    refusal = grant(1)._replace(refusal="bad flag", permanent=True)
    assert shard.grant(refusal, 0.0) == [Request(0), Request(1)]
    assert shard.parts[KEY].throttler.held == 0


def test_only_unlimited_instances_may_be_used_on_a_nodes_word() -> None:
    for concurrency, outcome in ((0, [A]), (2, [])):
        shard = shard_of(concurrency=concurrency)
        shard.submit(KEY, Request(1), 0.0)
        shard.announced(KEY, (Instance(A, KEY, NodeID("n"), "ready", "a:80"),), 0.0)
        assert [t.id for _, t in shard.drain(KEY, 0.0)] == outcome


def test_a_quiet_shard_forgets_and_falls_silent() -> None:
    shard = shard_of()
    shard.submit(KEY, Request(1), 0.0)
    _, seq, _ = asked(shard, 0.0)
    served(shard, seq, 0.0, (A, 2))
    shard.finished(KEY, A, 0.5)
    now = 0.5
    while shard.active:
        now += REPORT_S
        shard.tick(now)
        demands = shard.due(now)
        for _, demand in demands:
            shard.answered(KEY, demand.seq, now)
    assert now > QUIET_S
    assert [d.leases for _, d in demands] == [()]
    shard.grant(grant(999, (A, 2)), now)
    assert shard.parts[KEY].throttler.trackers == {}


def test_a_tick_looks_at_the_revisions_that_it_is_told_of() -> None:
    shard = shard_of()
    other = revision("ns/b", concurrency=2)
    shard.know(other, 0.0)
    for key in (KEY, other.key):
        shard.submit(key, Request(1), 0.0)
    late = revision().hold.seconds + 1.0
    assert [key for key, _ in shard.tick(late, [other.key])] == [other.key]
    assert [key for key, _ in shard.tick(late)] == [KEY]


def test_a_tick_can_be_left_between_a_few_revisions() -> None:
    world = World(1, {NodeID("node-0"): 50}, [revision(f"ns/r{k}") for k in range(3 * AT_ONCE + 1)])
    world.flush()
    for key in world.revisions:
        world.request(H0, key)
    (proc,) = world.live()
    steps = list(proc.ticks())
    assert max(steps) == AT_ONCE
    assert sum(steps) == 2 * len(world.revisions), "as shard and as home"


def test_a_deleted_revision_is_reported_of_in_time_that_goes_on() -> None:
    shard = shard_of()
    shard.submit(KEY, Request(1), 0.0)
    asked(shard, 0.0)
    shard.answered(KEY, 1, 9.0)
    assert len(shard.forget(KEY, 9.0)) == 1
    [(_, demand)] = shard.due(9.0)
    assert demand.concurrency_seconds >= 0.0


def test_terms_of_revisions_that_are_no_more_are_not_kept_for_ever() -> None:
    shard = shard_of()
    for number in range(KEEP_TERMS + 5):
        shard.recall(3, [RevisionKey(f"default/gone-{number}")], 0.0)
    assert len(shard._terms) == KEEP_TERMS
    shard.recall(3, [KEY], 0.0)
    shard.grant(grant(1, (A, 1), term=2), 0.0)
    assert shard.newest(KEY) == (3, 0), "an older home than that is not obeyed"
