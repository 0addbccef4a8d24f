"""The account of slots: fair shares, and never more than the limit whatever shards have heard of."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, SEEN_TTL_S, Demand
from kserve_ext.core.dispatch.leases import Leases, fair_shares
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey

S = [FunctionID(f"dispatch-{k}") for k in range(3)]
A, B = InstanceID("a"), InstanceID("b")


def demand(
    seq: int, wanted: int = 0, leases: dict[InstanceID, int] | None = None, granted: int = 0
) -> Demand:
    held = tuple((leases or {}).items())
    facts = Demand(RevisionKey("ns/a"), seq, wanted, 0, wanted, 0, 0, 0.0, 0.0, held, held, 1, 1, granted)
    return facts._replace(in_flight=sum(n for _, n in held))


def opened(limit: int) -> Leases:
    return Leases(limit, 0.0)


@given(
    st.dictionaries(st.sampled_from(S), st.integers(0, 20)),
    st.integers(0, 40),
    st.permutations(S),
)
def test_shares_are_max_min_fair(
    needs: dict[FunctionID, int], capacity: int, order: list[FunctionID]
) -> None:
    shares = fair_shares(needs, capacity, order)
    assert sum(shares.values()) == min(capacity, sum(needs.values()))
    for shard, share in shares.items():
        assert 0 <= share <= needs[shard]
        if share < needs[shard]:
            assert all(share >= other - 1 for other in shares.values()), "somebody poorer got less"


def test_slots_are_split_and_spread() -> None:
    leases = opened(4)
    for shard in S[:2]:
        leases.report(shard, demand(1, wanted=4), 1, 0.0)
    assert leases.allot([A, B], (), 0.0) == S[:2]
    for shard in S[:2]:
        assert leases.accounts[shard].intended == {A: 2, B: 2}


def test_what_one_has_too_much_comes_back_and_only_then_goes_on() -> None:
    leases = opened(4)
    leases.report(S[0], demand(1, wanted=9), 1, 0.0)
    leases.allot([A], (), 0.0)
    leases.sent(S[0], 1, 0.0)
    leases.report(S[0], demand(2, wanted=5, leases={A: 4}, granted=1), 1, 0.1)
    leases.report(S[1], demand(1, wanted=3), 1, 0.2)
    assert leases.allot([A], (), 0.2) == [S[0]]
    assert leases.accounts[S[0]].intended == {A: 2}
    leases.sent(S[0], 2, 0.2)
    assert leases.free(A) == 0, "it may not have heard yet"
    leases.report(S[0], demand(3, wanted=5, leases={A: 3}, granted=2), 1, 0.3)
    assert leases.allot([A], (), 0.3) == [S[1]], "one has come free, the other is still in use"
    leases.sent(S[1], 3, 0.3)
    assert leases.accounts[S[1]].intended == {A: 1}
    assert leases.free(A) == 0


def test_new_slots_go_past_one_that_still_uses_what_it_was_told_to_give_back() -> None:
    """Found in the simulator: it got both new ones, one of them idle, and another shard's request waited on."""
    c = [InstanceID(f"c{k}") for k in range(6)]
    leases = opened(1)
    leases.report(S[0], demand(1, wanted=1), 1, 0.0)
    leases.allot([c[0]], (), 0.0)
    leases.sent(S[0], 1, 0.0)
    leases.report(S[0], demand(2, leases={c[0]: 1}, granted=1), 1, 0.1)
    leases.report(S[1], demand(1, wanted=3), 1, 0.2)
    leases.allot(c[:4], (), 0.2)
    leases.sent(S[1], 1, 0.2)
    busy = dict.fromkeys(c[1:4], 1)
    leases.report(S[1], demand(2, wanted=1, leases=busy, granted=1), 1, 0.3)
    leases.report(S[0], demand(3, wanted=1, leases={c[0]: 1}, granted=1), 1, 0.3)
    leases.allot(c[:4], (), 0.3)
    assert leases.accounts[S[1]].total == 2, "a fair half, when one of its requests has ended"
    leases.allot(c[:5], (), 0.6)  # the turn of the one that gives back
    leases.allot(c, (), 0.6)
    given = {i for shard in S[:2] for i in leases.accounts[shard].intended if i in c[4:]}
    assert given == set(c[4:])
    assert leases.accounts[S[0]].total == 2
    assert leases.accounts[S[1]].occupied == 4


def asks(
    seq: int, waits_us: list[int], uses: dict[InstanceID, int] | None = None, granted: int = 0
) -> Demand:
    """So many requests are held, and wait for so long."""
    facts = demand(seq, len(waits_us), uses, granted)
    return facts._replace(waits_us=tuple(sorted(waits_us, reverse=True)))


def test_new_slots_go_to_those_who_have_waited_longest_whichever_shard_holds_them() -> None:
    c = [InstanceID(f"c{k}") for k in range(5)]
    leases = opened(1)
    leases.report(S[0], asks(1, [9000, 8000, 1000]), 1, 10.0)
    leases.report(S[1], asks(1, [5000, 4000]), 1, 10.0)
    got: list[FunctionID] = []
    for count in range(1, 6):
        told = leases.allot(c[:count], (), 10.1 * count)  # whosever turn it is
        got += told
    assert got == [S[0], S[0], S[1], S[1], S[0]]


def test_a_slot_that_waits_for_an_older_request_is_not_taken_back() -> None:
    c = [InstanceID(f"c{k}") for k in range(4)]
    leases = opened(1)
    leases.report(S[0], asks(1, [9000], {c[0]: 1, c[1]: 1}), 1, 10.0)
    leases.report(S[1], asks(1, [5000], {c[2]: 1}), 1, 10.0)
    leases.allot(c, (), 10.0)
    assert c[3] in leases.accounts[S[0]].intended, "it has waited longer"
    assert leases.accounts[S[0]].total == 2, "of those in use one is for the other shard when it ends"
    assert c[3] not in leases.accounts[S[1]].intended


def test_one_that_waits_longer_gives_nothing_back_and_one_that_has_just_come_does() -> None:
    for own_us, left in ((9000, 2), (1000, 1)):
        leases = opened(1)
        leases.report(S[0], asks(1, [own_us], {A: 1, B: 1}), 1, 10.0)
        leases.report(S[1], asks(1, [5000]), 1, 10.0)
        leases.allot([A, B], (), 10.0)
        assert leases.accounts[S[0]].total == left


Waits = st.lists(st.integers(0, 50), max_size=6)


@given(
    st.lists(st.tuples(Waits, st.integers(0, 3), st.booleans()), min_size=3, max_size=3), st.integers(0, 8)
)
def test_no_slot_is_left_over_while_a_request_waits_and_the_oldest_go_first(
    shards: list[tuple[list[int], int, bool]], ready: int
) -> None:
    """`shards`: ages, instances in use, and whether ages are told."""
    leases, now = opened(1), 100.0
    busy: list[InstanceID] = []
    for name, (waits, used, told) in zip(S, shards, strict=True):
        mine = [InstanceID(f"{name}-{k}") for k in range(used)]
        busy += mine
        facts = asks(1, waits, dict.fromkeys(mine, 1))
        leases.report(name, facts if told else facts._replace(waits_us=()), 1, now)
    idle = [InstanceID(f"idle-{k}") for k in range(ready)]
    leases.allot([*busy, *idle], (), now)
    given = {name: sum(i in idle for i in leases.accounts[name].intended) for name in S}
    left = sum(leases.free(i) for i in idle)
    assert not left or all(given[name] >= len(waits) for name, (waits, _, _) in zip(S, shards, strict=True))
    if all(told for _, _, told in shards):
        served = [
            w for name, (ws, _, _) in zip(S, shards, strict=True) for w in sorted(ws)[::-1][: given[name]]
        ]
        waits_on = [
            w for name, (ws, _, _) in zip(S, shards, strict=True) for w in sorted(ws)[::-1][given[name] :]
        ]
        assert max(waits_on, default=0) <= min(served, default=99)
    leases.check([*busy, *idle])


def test_a_grant_that_was_not_acknowledged_counts_even_after_a_smaller_one() -> None:
    leases = opened(4)
    leases.report(S[0], demand(1, wanted=9), 1, 0.0)
    leases.allot([A], (), 0.0)
    leases.sent(S[0], 1, 0.0)
    leases.report(S[1], demand(1, wanted=3), 1, 0.1)
    leases.allot([A], (), 0.1)
    leases.sent(S[0], 2, 0.1)
    assert leases.accounts[S[0]].intended == {A: 2}
    assert leases.free(A) == 0, "the first may have been applied, and the second not"
    leases.report(S[0], demand(2, wanted=7, leases={A: 2}, granted=2), 1, 0.2)
    assert leases.free(A) == 2


def test_a_restarted_shard_uses_nothing_and_a_late_word_of_the_old_one_counts_for_nothing() -> None:
    leases = opened(2)
    leases.report(S[0], demand(7, leases={A: 2}), 1, 0.0)
    assert leases.free(A) == 0
    assert leases.void(S[0], 5)
    assert leases.free(A) == 2
    assert not leases.report(S[0], demand(8, leases={A: 2}), 1, 0.1)
    assert leases.free(A) == 2
    assert leases.report(S[0], demand(1, leases={A: 1})._replace(incarnation=6), 1, 0.2)
    assert leases.free(A) == 1
    assert leases.report(S[0], demand(1)._replace(incarnation=7), 1, 0.3), "its numbers begin anew"
    assert leases.free(A) == 2


def test_a_shard_out_of_the_view_keeps_its_slots_until_its_lease_is_over() -> None:
    leases = opened(2)
    leases.report(S[0], demand(1, leases={A: 2}), 1, 10.0)
    leases.left(S[0], 10.5)
    leases.expire(10.0 + LEASE_TTL_S)
    assert leases.free(A) == 0
    assert leases.expire(10.1 + LEASE_TTL_S)
    assert leases.free(A) == 2


def test_one_that_comes_back_after_its_lease_was_over_does_not_get_what_others_have_now() -> None:
    """Found in the simulator: a shard that was paused for longer than its lease used it on."""
    leases = opened(2)
    leases.report(S[0], demand(1, leases={A: 2}), 1, 10.0)
    leases.left(S[0], 10.5)
    leases.expire(10.1 + LEASE_TTL_S)
    leases.report(S[1], demand(1, wanted=1), 1, 14.0)
    leases.allot([A], (), 14.0)
    assert leases.accounts[S[1]].intended == {A: 1}
    leases.report(S[0], demand(2, leases={A: 2})._replace(uses=()), 1, 15.0)
    leases.allot([A], (), 15.0)
    assert leases.accounts[S[0]].intended == {A: 1}


def test_one_that_comes_back_is_told_again_what_it_has_before_it_counts_as_known() -> None:
    """A Grant of its former account may have waited for it longer than the lease: it obeys that one first."""
    leases = opened(1)
    leases.report(S[0], demand(1, wanted=1), 1, 0.0)
    leases.allot([A], (), 0.0)
    leases.sent(S[0], 1, 0.0)
    leases.report(S[0], demand(2, leases={A: 1}, granted=1), 1, 0.1)
    assert leases.knows(S[0], 0.1)
    leases.left(S[0], 0.2)
    leases.expire(0.3 + LEASE_TTL_S)
    leases.report(S[0], demand(3), 1, 10.0)
    assert not leases.knows(S[0], 10.0)
    leases.sent(S[0], 3, 10.0)
    leases.report(S[0], demand(4, granted=3), 1, 10.1)
    assert leases.knows(S[0], 10.1)


def test_frozen_slots_stay_where_they_are() -> None:
    leases = opened(2)
    leases.frozen_until = 3.0
    leases.report(S[0], demand(1, wanted=5, leases={A: 1}), 1, 0.0)
    leases.allot([A, B], {A}, 0.0)
    assert leases.accounts[S[0]].intended == {A: 1, B: 2}, "of b no former home can have given anything"
    leases.allot([A, B], {A}, 3.0)
    assert leases.accounts[S[0]].intended == {A: 2, B: 2}


class Shard:
    """Applies the Grants that it gets, in any order, with losses, and uses what it may."""

    def __init__(self) -> None:
        self.seq = self.granted = self.wanted = 0
        self.slots: dict[InstanceID, int] = {}
        self.uses: dict[InstanceID, int] = {}

    def state(self) -> Demand:
        self.seq += 1
        lease = {i: max(self.slots.get(i, 0), self.uses.get(i, 0)) for i in {*self.slots, *self.uses}}
        facts = demand(
            self.seq, self.wanted, {i: n for i, n in sorted(lease.items()) if n}, granted=self.granted
        )
        return facts._replace(uses=tuple(self.uses.items()), in_flight=sum(self.uses.values()))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 6)), max_size=80))
def test_no_order_of_events_gives_out_more_than_the_limit(steps: list[tuple[int, int, int]]) -> None:
    limit, usable = 3, [A, B]
    leases, shards = opened(limit), {s: Shard() for s in S}
    grants: list[tuple[FunctionID, int, dict[InstanceID, int]]] = []
    words: list[tuple[FunctionID, Demand]] = []
    seq = 0
    now = 0.0
    for action, which, number in steps:
        name = S[which]
        shard = shards[name]
        now += 0.1
        if action == 0:
            shard.wanted = number
            words.append((name, shard.state()))
        elif action == 1 and words:
            who, word = words.pop(number % len(words))
            leases.report(who, word, 1, now)
            for told in leases.allot(usable, (), now):
                seq += 1
                leases.sent(told, seq, now)
                grants.append((told, seq, dict(leases.accounts[told].intended)))
        elif action == 2 and grants:
            who, number_of, slots = grants.pop(number % len(grants))
            if number_of > shards[who].granted and number != 6:
                shards[who].granted, shards[who].slots = number_of, slots
        elif action == 3:
            for i in usable:
                if shard.uses.get(i, 0) < shard.slots.get(i, 0):
                    shard.uses[i] = shard.uses.get(i, 0) + 1
                    break
        elif action == 4:
            for i in usable:
                if shard.uses.get(i, 0):
                    shard.uses[i] -= 1
                    break
        elif action == 5:
            shard.slots = {i: max(shard.uses.get(i, 0), n - 1) for i, n in shard.slots.items()}
        for i in usable:
            may_use = sum(max(s.slots.get(i, 0), s.uses.get(i, 0)) for s in shards.values())
            assert may_use <= limit
        leases.check(usable)


def test_what_a_paused_shard_uses_is_not_free_when_its_lease_is_over() -> None:
    """Its requests go on at their instances; where the end of its process would be told, that is waited for."""
    leases = opened(2)
    leases.report(S[0], demand(1, leases={A: 2}), 1, 0.0)
    leases.left(S[0], 3.0)
    assert not leases.expire(LEASE_TTL_S + 0.1, {S[0]})
    leases.report(S[1], demand(1, wanted=1), 1, LEASE_TTL_S + 0.1)
    leases.allot([A], (), LEASE_TTL_S + 0.1)
    assert not leases.accounts[S[1]].intended
    assert leases.expire(SEEN_TTL_S + 0.1, {S[0]}), "it hangs, and was ended by whoever watches it"
    leases.allot([A], (), SEEN_TTL_S + 0.1)
    assert leases.accounts[S[1]].intended == {A: 1}
