"""Which idle pod goes for a plain one that no node has room for, and when none does."""

from __future__ import annotations

from kserve_ext.core.standby.giving_way import (
    AFTER_S,
    ENDS_S,
    MOST,
    NEXT_S,
    PATIENCE_S,
    GivingWay,
    Idle,
    Waiting,
    helps,
)

GPU, CPU = frozenset({"cpu", "memory", "nvidia.com/gpu"}), frozenset({"cpu", "memory"})
POOLS = {"gpu": GPU, "cpu": CPU}
WAITS = [Waiting("a/new", frozenset({"cpu", "nvidia.com/gpu"}))]


def idle(count: int, pool: str = "gpu", node: str = "n1", scheduled: bool = True) -> list[Idle]:
    return [Idle(f"{pool}-{node}-{i}", pool, POOLS[pool], float(i), node, scheduled) for i in range(count)]


def test_one_that_has_what_is_lacking_goes_and_the_next_when_that_was_not_enough() -> None:
    giving, there = GivingWay(), [*idle(1, "cpu"), *idle(2), *idle(1, node="n0")]
    assert giving.decide(WAITS, there, POOLS, 0.0) == ((), {}), "it may yet find a node"
    way = giving.decide(WAITS, there, POOLS, AFTER_S)
    assert way.delete == (("gpu-n1-1", "a/new"),), "the youngest of where most are"
    assert way.holds == {"gpu": "a/new"}
    there = [one for one in there if one.uid != "gpu-n1-1"]
    assert giving.decide(WAITS, there, POOLS, AFTER_S + NEXT_S - 1) == ((), {"gpu": "a/new"})
    assert len(giving.decide(WAITS, there, POOLS, AFTER_S + NEXT_S).delete) == 1
    assert giving.decide([], there, POOLS, AFTER_S + 2 * NEXT_S) == ((), {}), "it has a node"


def test_those_without_a_node_go_at_once_and_take_no_place() -> None:
    giving = GivingWay()
    there = [*idle(3, node="", scheduled=False), *idle(1), *idle(1, "cpu", "", False)]
    giving.decide(WAITS, there, POOLS, 0.0)
    gone = {uid for uid, _ in giving.decide(WAITS, there, POOLS, AFTER_S).delete}
    assert gone == {"gpu--0", "gpu--1", "gpu--2", "gpu-n1-0"}


def test_what_can_not_be_helped_is_given_up() -> None:
    giving, gone, now = GivingWay(), 0, 0.0
    while now < PATIENCE_S:
        gone += len(giving.decide(WAITS, idle(50), POOLS, now).delete)
        now += 1.0
    assert gone == MOST
    assert giving.decide(WAITS, idle(50), POOLS, now) == ((), {})


def test_devices_that_are_lacking_are_not_to_be_had_from_pods_without() -> None:
    assert not helps(CPU, frozenset({"cpu", "nvidia.com/gpu"}))
    assert helps(CPU, frozenset({"cpu"}))
    assert not helps(GPU, frozenset()), "it lacks no resource: a taint, a claim"
    giving = GivingWay()
    for now in (0.0, AFTER_S):
        way = giving.decide(WAITS, idle(2, "cpu"), POOLS, now)
    assert way == ((), {"gpu": "a/new"})


def gone(
    giving: GivingWay, there: list[Idle], pod: Waiting, rooms: dict[str, int], looks: int = 30
) -> list[str]:
    """Who goes, at a look every ten seconds."""
    found: list[str] = []
    for look in range(looks):
        left = [one for one in there if one.uid not in found]
        found += [uid for uid, _ in giving.decide([pod], left, POOLS, 10.0 * look, (), rooms).delete]
    return found


def test_what_has_been_begun_on_a_node_is_gone_on_with() -> None:
    there = [*idle(3, node="n0"), *idle(3)]
    assert gone(GivingWay(), there, WAITS[0], {}, 5) == ["gpu-n0-2", "gpu-n0-1"]
    assert gone(GivingWay(), there, WAITS[0], {}) == [f"gpu-{n}-{i}" for n in ("n0", "n1") for i in (2, 1, 0)]


def test_none_goes_where_the_gpus_can_not_be_enough() -> None:
    """Fewer than it asks for, or held by pods of revisions."""
    there, pair = [*idle(3, node="n0"), *idle(2)], Waiting("a/new", frozenset({"nvidia.com/gpu"}), 2)
    assert gone(GivingWay(), there, pair, {"n0": 1, "n1": 2}) == ["gpu-n1-1", "gpu-n1-0"]
    assert gone(GivingWay(), there, pair, {"n0": 1, "n1": 1}) == []
    assert len(gone(GivingWay(), there, pair, {"n0": 1})) == 2, (
        "a node that nothing is known of may have enough"
    )


def test_one_that_takes_long_to_end_holds_up_the_next_for_a_while() -> None:
    giving = GivingWay()
    giving.decide(WAITS, idle(2), POOLS, 0.0)
    ((first, _),) = giving.decide(WAITS, idle(2), POOLS, AFTER_S).delete
    now = AFTER_S
    while not (way := giving.decide(WAITS, idle(1), POOLS, now, {first})).delete:
        now += 1.0
    assert AFTER_S + ENDS_S < now < AFTER_S + ENDS_S + NEXT_S
    assert len(way.delete) == 1
    assert not giving.decide(WAITS, idle(1), POOLS, now + NEXT_S, {way.delete[0][0]}).delete
    assert not giving.decide(WAITS, idle(1), POOLS, now + 2 * NEXT_S - 1).delete, (
        "the scheduler takes its time"
    )
    assert giving.decide(WAITS, idle(1), POOLS, now + 2 * NEXT_S).delete


def test_one_that_is_ending_for_another_reason_holds_up_nobody() -> None:
    giving = GivingWay()
    giving.decide(WAITS, idle(2), POOLS, 0.0)
    assert giving.decide(WAITS, idle(2), POOLS, AFTER_S, {"other"}).delete


def several(count: int, lacks: str = "nvidia.com/gpu", gpus: int = 1) -> list[Waiting]:
    return [Waiting(f"a/{i}", frozenset({lacks}), gpus) for i in range(count)]


def rounds(waiting: list[Waiting], there: list[Idle], helped: bool = True) -> list[list[str]]:
    """For whom pods go, while each that gets one has a node by then, or nobody has."""
    giving, found = GivingWay(), []
    giving.decide(waiting, there, POOLS, 0.0)
    for number in range(4):
        way = giving.decide(waiting, there, POOLS, AFTER_S + number * NEXT_S)
        found.append([who for _, who in way.delete])
        there = [one for one in there if one.uid not in dict(way.delete)]
        waiting = [pod for pod in waiting if not (helped and pod.name in found[-1])]
    return found


def test_where_it_helps_it_is_done_for_more_at_once() -> None:
    helped = rounds(several(7), idle(9))
    assert helped == [["a/0"], ["a/1", "a/2"], ["a/3", "a/4", "a/5", "a/6"], []]
    assert rounds(several(7), idle(9), helped=False) == [["a/0"]] * 4


def test_a_place_that_another_is_given_is_not_of_who_it_was_made_for() -> None:
    giving, waiting, there = GivingWay(), several(40), idle(60)
    giving.decide(waiting, there, POOLS, 0.0)
    counts = []
    for number in range(5):
        way = giving.decide(waiting, there, POOLS, AFTER_S + number * NEXT_S)
        counts.append(len(way.delete))
        there = [one for one in there if one.uid not in dict(way.delete)]
        waiting = waiting[: len(waiting) - counts[-1]]  # the scheduler begins with the last
    assert counts == [1, 2, 4, 8, 16]
    assert giving._given.total() == 16


def test_who_goes_without_a_node_was_not_helped() -> None:
    giving, waiting, there = GivingWay(), several(4), idle(20)
    giving.decide(waiting, there, POOLS, 0.0)
    counts = []
    for number in range(4):
        now, left = AFTER_S + number * NEXT_S, waiting[: 4 - number]
        way = giving.decide(left, there, POOLS, now, placed=lambda name: False)
        counts.append(len(way.delete))
        there = [one for one in there if one.uid not in dict(way.delete)]
    assert counts == [1, 1, 1, 1]
    assert giving._given["a/0"] == 4, "nobody's place was another's"


def test_a_new_wait_begins_with_one() -> None:
    giving = GivingWay()
    for now, waits in ((0.0, several(1)), (AFTER_S, several(1)), (20.0, []), (40.0, several(3))):
        giving.decide(waits, idle(9), POOLS, now)
    assert len(giving.decide(several(3), idle(9), POOLS, 40.0 + AFTER_S).delete) == 1


def test_one_idle_pod_is_enough_for_as_many_as_its_gpus_are() -> None:
    large = [one._replace(gpus=2) for one in idle(9)]
    # What goes for a/1 has a place for a/2.
    assert rounds(several(7), large)[:2] == [["a/0"], ["a/1", "a/3"]]


def test_who_waits_for_cpu_gets_one_idle_pod_together_and_holds_up_nobody_who_waits_for_gpus() -> None:
    waiting, there = (
        [*several(3, "cpu", 0), Waiting("b/gpu", frozenset({"nvidia.com/gpu"}), 1)],
        idle(4, "cpu"),
    )
    assert rounds(waiting, [*there, *idle(1)])[:2] == [["a/0"], ["a/1", "b/gpu"]]
