"""Hand-over: one placer a node, whatever is lost, repeated or late, and whoever dies or was only paused."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule.facts import Standing
from kserve_ext.core.schedule.handover import (
    LEAVE_S,
    PATIENCE_S,
    Claim,
    Handed,
    Handing,
    Handover,
    Moved,
    Recall,
)
from kserve_ext.core.schedule.line import Line
from kserve_ext.core.schedule.partition import Partition
from tests.core.schedule.handover_world import NEEDS, Node, World
from tests.core.schedule.test_placement import revision, status

A, B, C = (FunctionID(f) for f in "ABC")
N = NodeID("n")


# --- one hand-over at a time


def two(owner: FunctionID = A) -> tuple[Handover, Handover]:
    """A and B under epoch 1, the node with `owner`."""
    a, b = Handover(A, Partition()), Handover(B, Partition())
    for one, other in ((a, b), (b, a)):
        for i in one.view(1, {N: owner}, {A, B}, 0.0):
            assert isinstance(i, Claim)
            assert one.handed(i.to, 1, other.claim(one.me, 1, i.nodes, 0.0), 0.0) == [Recall((N,))]
    holder = a if owner == A else b
    holder.heard(status(N), 0.0)
    return a, b


def test_the_old_owner_places_until_it_is_asked_and_hands_over_what_it_knows() -> None:
    a, b = two()
    a.partition.sent(InstanceID("i1"), N, NEEDS)
    a.view(2, {N: B}, {A, B}, 1.0)
    assert a.terms == {N: 1}
    assert a.partition.candidate(N) is not None
    (claim,) = b.view(2, {N: B}, {A, B}, 1.0)
    assert claim == Claim(A, 2, (N,))
    answer = a.claim(B, 2, (N,), 1.0)
    assert answer.handed == (Handed(N, status(N), ((InstanceID("i1"), NEEDS),)),)
    assert (a.terms, a.partition.candidates()) == ({}, [])
    assert b.handed(A, 2, answer, 1.0) == []
    assert b.terms == {N: 2}
    candidate = b.partition.candidate(N)
    assert candidate is not None
    assert candidate.free == status(N).free.minus(NEEDS)
    b.tick(4.0)
    candidate = b.partition.candidate(N)
    assert candidate is not None
    assert candidate.free == status(N).free, "the start of the old owner is over by then"


def test_room_that_the_old_owner_keeps_for_its_line_is_not_owed() -> None:
    a, b = two()
    line = Line(a.partition)
    line.waits("d/r", [revision(key="d/r")], False, Standing("home:1"), 0.5)
    assert line.give(0.6)
    assert a.partition.starts(N)
    a.view(2, {N: B}, {A, B}, 1.0)
    b.view(2, {N: B}, {A, B}, 1.0)
    b.handed(A, 2, a.claim(B, 2, (N,), 1.0), 1.0)
    candidate = b.partition.candidate(N)
    assert candidate is not None
    assert candidate.free == status(N).free
    assert a.partition.starts(N) == ()


def test_a_claim_that_comes_before_the_view_is_obeyed_and_a_lost_answer_is_given_again() -> None:
    a, b = two()
    b.view(2, {N: B}, {A, B}, 1.0)
    answer = a.claim(B, 2, (N,), 1.0)
    assert a.claim(B, 2, (N,), 1.2) == answer
    assert a.terms == {}
    assert a.view(2, {N: B}, {A, B}, 1.3) == []


def test_a_stale_claim_is_answered_with_who_owns_the_node() -> None:
    a, b = two()
    a.view(3, {N: C}, {A, B, C}, 1.0)
    b.view(2, {N: B}, {A, B}, 1.0)
    answer = a.claim(B, 2, (N,), 1.0)
    assert answer == Handing(3, moved=(Moved(N, C, owner=True),))
    assert b.handed(A, 2, answer, 1.0) == []
    assert b.tick(1.0 + 2 * PATIENCE_S) == [], "the newer view is on its way"
    assert b.terms == {}
    assert a.terms == {N: 1}, "C has not claimed it yet"


def test_a_dead_owner_is_replaced_at_once_and_a_silent_one_after_a_while() -> None:
    _, b = two()
    assert b.view(2, {N: B}, {B}, 1.0) == [Recall((N,))]
    assert b.terms == {N: 2}
    b.stored(status(N, seq=7))
    assert b.partition.status(N) == status(N, seq=7)

    _, b = two()
    assert b.view(2, {N: B}, {A, B}, 1.0) == [Claim(A, 2, (N,))]
    assert b.tick(1.15) == [Claim(A, 2, (N,))]
    assert b.tick(1.0 + PATIENCE_S) == [Recall((N,))]

    _, b = two()
    (claim,) = b.view(2, {N: B}, {A, B}, 1.0)
    assert isinstance(claim, Claim)
    assert b.nobody(claim, 1.1) == [Recall((N,))]


def test_an_owner_that_was_paused_finds_out_from_the_node_and_claims_what_is_its_own_again() -> None:
    a, b = two()
    b.view(2, {N: B}, {B}, 1.0)
    node = Node(N)
    assert node.start(B, b.terms[N])
    a.view(3, {N: A}, {A, B}, 1.1)  # it has slept through the second view
    assert not node.start(A, a.terms[N])
    assert a.refused(N, 1, 1.1) == [Claim(B, 3, (N,))]
    b.view(3, {N: A}, {A, B}, 1.1)
    a.handed(B, 3, b.claim(A, 3, (N,), 1.1), 1.1)
    assert (a.terms, b.terms) == ({N: 3}, {})
    assert node.start(A, a.terms[N])
    assert not node.start(B, 2)


def test_what_nobody_claims_is_given_up_in_the_end() -> None:
    a, _ = two()
    a.view(2, {N: B}, {A, B}, 1.0)
    a.tick(1.0 + LEAVE_S - 0.1)
    assert a.terms == {N: 1}
    a.tick(1.0 + LEAVE_S)
    assert a.terms == {}


def test_a_status_of_a_node_that_is_not_ours_names_its_owner() -> None:
    a, b = two()
    assert b.heard(status(N, seq=2), 1.0) == A
    assert a.heard(status(N, seq=2), 1.0) is None
    b.view(2, {N: B}, {A, B}, 1.0)
    assert b.heard(status(N, seq=3), 1.0) is None, "kept until it has come"
    b.handed(A, 2, a.claim(B, 2, (N,), 1.0), 1.0)
    assert b.partition.status(N) == status(N, seq=3)


# --- any history


def test_without_harm_a_node_never_has_two_placers_and_soon_has_its_owner() -> None:
    world = World(12, [A])
    for change, who in (
        (world.join, B),
        (world.join, C),
        (world.drain, B),
        (world.leave, B),
        (world.join, B),
        (world.leave, A),
    ):
        change(who)
        for _ in range(10):
            world.run(0.01)
            assert all(len(world.placers(node)) <= 1 for node in world.nodes)
        owners = world.views[-1].owners
        assert {n: world.placers(n) for n in world.nodes} == {n: [owners[n]] for n in world.nodes}


events = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "kill", "pause", "resume", "place", "run"]), st.integers(0, 3)
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 8), st.sampled_from([0.0, 0.3]), events)
def test_whatever_happens_no_newer_placer_is_overridden_and_in_the_end_each_node_has_its_owner(
    seed: int, nodes: int, harm: float, happens: list[tuple[str, int]]
) -> None:
    names = [FunctionID(f) for f in "ABCD"]
    world = World(nodes, names[:2], seed, harm)
    for what, which in happens:
        name = names[which]
        if what == "join" and name not in world.members:
            world.join(name)
        elif what == "leave" and len(world.members) > 1 and name in world.members:
            world.leave(name)
        elif what == "kill" and len(world.members) > 1 and name in world.members:
            del world.functions[name]
            world.leave(name)
        elif what == "pause":
            world.paused.add(name)
        elif what == "resume":
            world.paused.discard(name)
        elif what == "place":
            for placer in world.functions:
                world.place(placer)
        world.run(0.05)
    world.paused.clear()
    world.harm = 0.0
    for _ in range(12):
        world.run(0.6)
        for placer in world.functions:
            world.place(placer)
    owners = world.views[-1].owners
    for node in world.nodes.values():
        terms = [term for _, term in node.started]
        assert terms == sorted(terms), "an action under an old epoch has overridden a newer one"
        by_term = {term: {by for by, t in node.started if t == term} for term in terms}
        assert all(len(by) == 1 for by in by_term.values()), "two placers under one epoch"
        assert world.placers(node.name) == [owners[node.name]]
