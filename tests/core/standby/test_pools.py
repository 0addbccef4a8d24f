"""How many pods a pool gets and loses, and when; and where a slot is chosen."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from kserve_ext.core.standby import pools
from kserve_ext.core.standby.facts import Slot
from kserve_ext.core.standby.known import Place, Seen, choose
from kserve_ext.core.standby.pools import NOT_UP, Lack, Member, Pool, State


def members(*states: State, made_at: float = 0.0) -> list[Member]:
    return [Member(f"pod-{i}", f"u{i}", state, made_at) for i, state in enumerate(states)]


def test_it_is_filled_to_its_size_at_a_rate() -> None:
    pool = Pool()
    first = pool.decide(20, [], False, 0.0)
    assert first.create == pools.BURST
    for number in range(first.create):
        pool.made(f"n{number}", 0.0)
    assert first.recheck_s is not None
    assert pool.decide(20, [], False, 1.0).create == int(pools.RATE)


def test_what_was_made_counts_before_it_is_seen() -> None:
    pool = Pool()
    assert pool.decide(2, [], False, 0.0).create == 2
    pool.made("u0", 0.0)
    pool.made("u1", 0.0)
    assert pool.decide(2, [], False, 1.0).create == 0
    assert pool.decide(2, members("coming", "ready"), False, 2.0).create == 0


def test_pods_that_were_taken_are_made_up_for_behind_the_burst() -> None:
    pool = Pool()
    taken = members("busy", "busy", "ready")
    assert pool.decide(3, taken, True, 0.0).create == 0
    assert pool.decide(3, taken, False, 1.0).create == 2
    pool = Pool()
    assert pool.decide(3, taken, True, 0.0).create == 0
    assert pool.decide(3, taken, True, pools.BEHIND_S).create == 2


def test_what_is_stranded_is_made_up_for_and_goes_once_that_is_there() -> None:
    pool = Pool()
    change = pool.decide(2, members("stranded", "ready"), False, 0.0)
    assert (change.create, change.delete) == (1, ())
    pool = Pool()
    assert [uid for uid, _ in pool.decide(2, members("stranded", "ready", "ready"), False, 0.0).delete] == [
        "u0"
    ]
    assert [uid for uid, _ in Pool().decide(0, members("stranded"), False, 0.0).delete] == ["u0"]


def test_nobody_asks_and_it_is_emptied_but_for_those_in_use() -> None:
    pool = Pool()
    there = members("busy", "ready", "coming")
    assert pool.decide(0, there, False, 0.0).delete == ()
    gone = {uid for uid, _ in pool.decide(0, there, False, pools.SURPLUS_S).delete}
    assert gone == {"u1", "u2"}


def test_what_has_ended_goes_and_what_never_served_slows_the_pool_down() -> None:
    pool = Pool()
    used = pool.decide(1, members("used up"), False, 0.0)
    assert (len(used.delete), used.create) == (1, 1)
    waits = []
    now = 0.0
    for number in range(5):
        failed = [Member("p", f"f{number}", "failed", now, reason="ImagePullBackOff")]
        change = pool.decide(1, failed, False, now)
        assert change.create == 0
        assert change.recheck_s is not None
        waits.append(change.recheck_s)
        now += change.recheck_s
        assert pool.decide(1, [], False, now).create == 1
        now += 10.0
    assert waits == sorted(waits)
    assert waits[-1] == 2 ** (len(waits) - 1) * waits[0]
    assert pool.reason == "ImagePullBackOff"
    pool.decide(1, members("ready"), False, now)
    assert pool.failures == 0


def test_a_slot_that_stands_by_hides_no_failures_of_the_others() -> None:
    """The other's pod ends three seconds after it was made, for an hour."""
    pool, good, others, made = Pool(), Member("a", "a", "ready", 0.0), list[tuple[str, float]](), 0
    for tick in range(7200):
        now = tick / 2
        there = [
            good,
            *(
                Member(u, u, "failed" if now >= at + 3 else "coming", at, reason="it ended")
                for u, at in others
            ),
        ]
        change = pool.decide(2, there, False, now)
        others = [other for other in others if other[0] not in {uid for uid, _ in change.delete}]
        for _ in range(change.create):
            made += 1
            others.append((f"u{made}", now))
            pool.made(f"u{made}", now)
        assert pool.reason == ("it ended" if now >= 3 else "")
    assert 10 < made < 30
    pool.decide(2, [good, Member("z", "z", "ready", 0.0)], False, 7200.0)
    assert (pool.failures, pool.reason) == (0, "")


def test_what_was_made_beside_one_that_was_refused_proves_nothing() -> None:
    pool = Pool()
    assert pool.decide(2, [], False, 0.0).create == 2
    pool.refused("quota", 0.1)
    pool.made("u0", 0.2)
    pool.decide(2, members("ready"), False, 1.0)
    assert (pool.failures, pool.reason) == (1, "refused by the API server: quota")
    pool.decide(1, members("ready"), False, 1.0)
    assert (pool.failures, pool.reason) == (1, ""), "nothing is lacking"


def test_how_a_pool_is_short_has_words_of_its_own() -> None:
    words = {
        Lack("why", none, busy).words: Lack("why", none, busy).amiss
        for none, busy in ((True, False), (True, True), (False, False))
    }
    assert len(words) == 3
    assert all(said.endswith(f"{NOT_UP}why") for said in words)
    assert list(words.values()) == [True, False, True]
    assert Lack("why", True, True, failing=True).amiss


def test_a_pod_that_never_becomes_a_slot_is_replaced_unless_it_waits_for_a_node() -> None:
    pool = Pool()
    assert pool.decide(1, members("coming"), False, pools.WARM_S - 1).delete == ()
    assert len(pool.decide(1, members("coming"), False, pools.WARM_S).delete) == 1
    unscheduled = [Member("p", "u9", "coming", 0.0, scheduled=False)]
    assert Pool().decide(1, unscheduled, False, 10 * pools.WARM_S).delete == ()


@given(st.integers(0, 30), st.lists(st.sampled_from(("taken", "dies", "comes")), max_size=40))
def test_left_alone_it_comes_to_its_size(size: int, events: list[str]) -> None:
    pool, now, number = Pool(), 0.0, 0
    there: dict[str, State] = {}

    def turn() -> None:
        nonlocal number
        change = pool.decide(size, [Member(uid, uid, state, now) for uid, state in there.items()], False, now)
        for uid, _ in change.delete:
            del there[uid]
        for _ in range(change.create):
            number += 1
            there[f"n{number}"] = "coming"

    for event in events:
        ready = [uid for uid, state in there.items() if state == "ready"]
        coming = [uid for uid, state in there.items() if state == "coming"]
        if event == "taken" and ready:
            there[ready[0]] = "busy"
        if event == "dies" and coming:
            there[coming[0]] = "failed"
        if event == "comes":
            there |= dict.fromkeys(coming, "ready")
        turn()
        now += 1.0
    for _ in range(60):
        there |= {uid: "ready" for uid, state in there.items() if state == "coming"}
        turn()
        now += 20.0
    assert sum(state == "ready" for state in there.values()) == size


def seen(name: str, node: str, level: str = "S0") -> Seen:
    return Seen(Slot(name, name, "p", "ip", level, "ready"), node)  # type: ignore[arg-type]


def places(*slots: Seen) -> dict[Place, dict[str, Seen]]:
    found: dict[Place, dict[str, Seen]] = {}
    for one in slots:
        found.setdefault(Place(one.node, one.slot.level, one.slot.asleep), {})[one.slot.uid] = one
    return found


def test_where_the_model_is_then_what_has_most_behind_it_then_spread() -> None:
    free = places(seen("a", "n1"), seen("b", "n1", "S1"), seen("c", "n2"), seen("d", "n2"), seen("e", "n3"))
    models = {"n2": frozenset({"pvc://m/x"})}
    chosen = choose(free, 5, "pvc://m/x", models, {"n3": 1})
    assert [one.slot.pod for one in chosen] == ["c", "d", "b", "a", "e"]
    assert [one.slot.pod for one in choose(free, 2, "", {}, {"n1": 1})] == ["b", "c"]
