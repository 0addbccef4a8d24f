"""partitions: even shares, few moves, the same answer for everybody, whatever came and went before."""

from __future__ import annotations

from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core import rendezvous
from kserve_ext.core.facts import Member, View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.partitions import carried, divide, loads, moved, owner, owners
from kserve_ext.core.rendezvous import ranked

MOST = 1.25  # of the mean, where whole nodes allow it
MOVED = 1.5  # times 1/N

names = st.text("abcdef0123", min_size=1, max_size=5)
node_sets = st.sets(names.map(NodeID), min_size=1, max_size=60)
function_sets = st.sets(names.map(FunctionID), min_size=1, max_size=9)


def cluster(nodes: int, functions: int) -> tuple[list[NodeID], list[FunctionID]]:
    return [NodeID(f"node-{n:04d}") for n in range(nodes)], [
        FunctionID(f"schedule-{f}") for f in range(functions)
    ]


def even(nodes: int, shares: list[int]) -> bool:
    mean = nodes / len(shares)
    return max(shares) <= max(ceil(mean), MOST * mean) and max(shares) - min(shares) <= 1


@given(node_sets, function_sets, st.randoms(use_true_random=False))
def test_orders_do_not_matter_and_everybody_agrees(nodes, functions, rng) -> None:  # type: ignore[no-untyped-def]
    owned = divide(nodes, functions)
    other_nodes, other_functions = sorted(nodes), sorted(functions)
    rng.shuffle(other_nodes)
    rng.shuffle(other_functions)
    assert divide(other_nodes, other_functions) == owned
    shuffled = list(owned.items())
    rng.shuffle(shuffled)
    assert list(divide(other_nodes, other_functions, dict(shuffled)).items()) == list(owned.items())


@given(node_sets, function_sets)
def test_every_node_has_an_owner_the_shares_are_even_and_dividing_again_changes_nothing(
    nodes: set[NodeID], functions: set[FunctionID]
) -> None:
    owned = divide(nodes, functions)
    assert list(owned) == sorted(nodes)
    assert set(owned.values()) <= functions
    assert even(len(nodes), loads(owned, sorted(functions)))
    assert divide(nodes, functions, owned) == owned


changes = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "node", "lost"]), st.integers(0, 999)), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 250), st.integers(1, 40), changes)
def test_after_any_history_a_function_that_joins_or_leaves_moves_little(
    nodes: int, functions: int, history: list[tuple[str, int]]
) -> None:
    known, members = cluster(nodes, functions)
    owned = divide(known, members)
    for number, (what, which) in enumerate(history):
        before, count = owned, len(members)
        if what == "join":
            members = [*members, FunctionID(f"new-{number}")]
        elif what == "leave" and count > 1:
            members = [f for k, f in enumerate(members) if k != which % count]
        elif what == "node":
            known = [*known, NodeID(f"late-{number}")]
        elif what == "lost" and len(known) > 1:
            known = [n for k, n in enumerate(known) if k != which % len(known)]
        owned = divide(known, members, before)
        assert even(len(known), loads(owned, members))
        changed = len(moved(before, owned))
        if what == "join":
            assert changed <= len(known) / len(members), "not more than an even share"
            assert {owned[n] for n in moved(before, owned)} <= {members[-1]}, "only to the new one"
        elif what == "leave" and len(members) < count:
            assert changed <= max(MOVED * len(known) / count, 1)
            assert all(before[n] not in members for n in moved(before, owned)), "only from the one that left"
        elif what == "lost":
            assert changed <= 1
        else:
            assert changed == 0


def test_210_nodes_over_1_to_42_functions() -> None:
    """Up and down again, one at a time: the numbers of DESIGN 7."""
    known, members = cluster(210, 42)
    for order in (range(1, 43), range(42, 0, -1)):
        owned: dict[NodeID, FunctionID] = {}
        for count in order:
            before, owned = owned, divide(known, members[:count], owned)
            shares = loads(owned, members[:count])
            assert max(shares) / (210 / count) <= MOST
            assert len(moved(before, owned)) / 210 <= MOVED / count


def test_from_scratch_most_nodes_get_whom_they_prefer() -> None:
    known, members = cluster(210, 35)
    owned = divide(known, members)
    assert sum(owned[n] == ranked(n, members)[0] for n in known) > 210 * 0.6


def view(nodes: list[NodeID], functions: list[FunctionID], epoch: int = 1) -> View:
    named = [
        *(Member(FunctionID(n), "node", f"{n}:1", 1) for n in nodes),
        *(Member(f, "schedule", f"{f}:1", 1) for f in functions),
        Member(FunctionID("cluster-mgr-0"), "cluster_mgr", "c:1", 1),
    ]
    return View(epoch, tuple(sorted(named)))


@given(st.integers(0, 30), st.integers(0, 5))
def test_a_view_carries_what_was_divided_and_one_that_does_not_is_divided_by_its_reader(
    nodes: int, functions: int
) -> None:
    known, members = cluster(nodes, functions)
    bare = view(known, members)
    assert owners(bare, "schedule") == divide(known, members)
    reversed_ = dict(zip(known, reversed(divide(known, members).values()), strict=False))
    full = carried(bare, reversed_, divide(known, [FunctionID("cluster-mgr-0")]))
    assert owners(full, "schedule") == reversed_
    assert set(owners(full, "cluster_mgr").values()) <= {"cluster-mgr-0"}
    assert owner(full, "schedule", NodeID("elsewhere")) == rendezvous.owner("elsewhere", members)


def test_a_view_whose_partitions_do_not_fit_its_members_is_divided_by_its_reader() -> None:
    known, members = cluster(4, 2)
    for partitions in ((0, 1), (0, 1, 2, 0), (0, 1, 1, 0, 0)):
        assert owners(view(known, members)._replace(partitions=partitions), "schedule") == divide(
            known, members
        )
