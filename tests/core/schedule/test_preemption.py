"""Plans of preemption: nobody of equal priority, nobody in vain, the lowest first, and each only once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import Holding, Resources, Revision
from kserve_ext.core.ids import NodeID, RevisionKey
from kserve_ext.core.schedule.filters import Candidate
from kserve_ext.core.schedule.preemption import Plan, keep, plan, plan_each, rooms
from tests.core.schedule.test_placement import revision, status

BIG = 64_000
#: of a node: what each of its revisions holds (CPU, instances, priority, when)
Load = list[tuple[int, int, int, float]]


def candidate(name: str, cpu: int, load: Load) -> Candidate:
    holdings = []
    free = Resources(cpu, BIG)
    for k, (amount, count, priority, at) in enumerate(load):
        needs = Resources(amount)
        for _ in range(count):
            free = free.minus(needs)
        holdings.append(Holding(RevisionKey(f"{name}/r{k}"), f"{name}/r{k}", priority, needs, count, at))
    found = status(name, free, capacity=Resources(cpu, BIG))._replace(holdings=tuple(holdings))
    return Candidate(found, free)


def wants(cpu: int, priority: int = 50) -> Revision:
    return revision(cpu, 1)._replace(priority=priority, preempts=True)


def taken(found: Plan | None) -> dict[str, int]:
    assert found is not None
    return {v.holding.revision: v.instances for v in found.victims}


loads = st.lists(
    st.tuples(st.sampled_from((500, 1000, 2000)), st.integers(1, 3), st.integers(0, 99), st.floats(0, 9)),
    max_size=4,
)


def test_what_was_just_admitted_is_no_room_that_comes() -> None:
    one = candidate("n", 2000, [(1000, 1, 0, 1.0)])
    admitted = one._replace(
        status=one.status._replace(free=Resources(0, BIG)), free=Resources(0, BIG), admitted=(wants(1000, 0),)
    )
    (room,) = rooms([admitted], {})
    assert room.free.cpu_milli == 0
    assert taken(plan([wants(1000)], rooms([admitted], {}))) == {"n/r0": 1}
    assert plan([wants(2000)], rooms([admitted], {})) is None, "the young one is not asked yet"


@settings(max_examples=200, deadline=None)
@given(
    nodes=st.lists(loads, min_size=1, max_size=3),
    members=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 99)), min_size=1, max_size=3),
)
def test_victims_are_lower_needed_and_as_many_as_there_are(
    nodes: list[Load], members: list[tuple[int, int]]
) -> None:
    asked = [wants(cpu * 1000, members[0][1]) for cpu, _ in members]
    there = [
        candidate(f"n{k}", sum(cpu * count for cpu, count, _, _ in load) + 500, load)
        for k, load in enumerate(nodes)
    ]
    found = plan(asked, rooms(there, {}))
    if found is None:
        return
    for c in there:
        node, free = c.status.node, c.free
        mine = [v for v in found.victims if v.node == node]
        for holding, _, count in mine:
            assert holding.priority < asked[0].priority
            assert 1 <= count <= holding.instances
            for _ in range(count):
                free = free.plus(holding.needs)
        placed = [of for of, at in zip(asked, found.nodes, strict=True) if at == node]
        for of in placed:
            free = free.minus(of.needs)
        assert min(free) >= 0, "what goes makes room for all that comes"
        if len(placed) == 1:
            assert not any(v.holding.needs.fits(free) for v in mine), "nobody goes in vain"
            worst = max((v.holding.priority for v in mine), default=-1)
            lower = c.free
            for holding in c.status.holdings:
                for _ in range(holding.instances if holding.priority < worst else 0):
                    lower = lower.plus(holding.needs)
            assert not mine or not placed[0].needs.fits(lower), "lower ones would have been enough"


def test_the_node_whose_victims_are_lowest_then_fewest_then_youngest() -> None:
    load = [
        candidate("a", 2000, [(2000, 1, 9, 0.0)]),
        candidate("b", 2000, [(1000, 2, 5, 0.0)]),
        candidate("c", 2000, [(2000, 1, 5, 1.0)]),
        candidate("d", 2000, [(2000, 1, 5, 2.0)]),
    ]
    assert taken(plan([wants(2000)], rooms(load, {}))) == {"d/r0": 1}
    assert taken(plan([wants(2000)], rooms(load[:3], {}))) == {"c/r0": 1}
    assert taken(plan([wants(2000)], rooms(load[:2], {}))) == {"b/r0": 2}
    assert taken(plan([wants(2000)], rooms(load[:2], {}), {RevisionKey("b/r0")})) == {"a/r0": 1}, (
        "b is spared"
    )
    assert plan([wants(2000, 5)], rooms(load, {})) is None, "of equal priority"


def test_room_that_is_on_its_way_is_used_before_anybody_is_asked_and_counted_once() -> None:
    """One of two was asked to go: before and after it drains, there is room to come for one, not for two."""
    before = candidate("a", 2000, [(1000, 2, 1, 0.0)])
    going = {(RevisionKey("a/r0"), NodeID("a")): 1}
    after = Candidate(
        before.status._replace(holdings=(before.status.holdings[0]._replace(instances=1),)), before.free
    )
    for seen in (before, after):
        assert taken(plan([wants(1000)], rooms([seen], going))) == {}
        found = plan_each([wants(1000), wants(1000), wants(1000)], rooms([seen], going))
        assert found is not None
        assert len(found.nodes) == 2
        assert taken(found) == {"a/r0": 1}


def test_room_is_kept_where_least_is_missing_and_never_where_it_could_not_be() -> None:
    small = candidate("a", 1000, [])
    near = candidate("b", 4000, [(1000, 3, 9, 0.0)])
    far = candidate("c", 4000, [(1000, 4, 9, 0.0)])
    kept = keep([wants(3000), wants(3000), wants(9000)], rooms([small, near, far], {}))
    assert [(of.needs.cpu_milli, node) for of, node in kept] == [(3000, "b"), (3000, "c")]
