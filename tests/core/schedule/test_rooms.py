"""rooms: news reaches everybody in few messages, silence costs next to none, a burst of borrowers spreads."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.schedule.rooms import EXCHANGE_ROUNDS, FANOUT, Room, Rooms


def cpu(milli: int) -> Resources:
    return Resources(milli, 1024)


class Everybody:
    """Functions that gossip; messages may be lost, come late or twice."""

    def __init__(self, count: int, chance: random.Random | None = None) -> None:
        names = [FunctionID(f"schedule-{k}") for k in range(count)]
        self.rooms = {name: Rooms(name, 1) for name in names}
        self.chance = chance
        self.sent = 0
        self.late: list[tuple[FunctionID, FunctionID, tuple[Room, ...], bool]] = []
        for rooms in self.rooms.values():
            rooms.view(set(names))

    def has(self, name: FunctionID, free: int) -> None:
        self.rooms[name].describe(cpu(free), cpu(free), 6, cpu(64_000))

    def round(self) -> None:
        messages, self.late = self.late, []
        for name, rooms in self.rooms.items():
            told = rooms.round()
            assert len(told) <= FANOUT
            self.sent += len(told)
            messages += [(name, to, said, wants) for to, said, wants in told]
        for message in messages:
            lost = self.chance.random() if self.chance else 1.0
            if lost < 0.2:
                continue
            if lost < 0.4:
                self.late.append(message)
            sender, to, said, wants = message
            self.rooms[sender].heard(self.rooms[to].heard(said, wants=wants))

    def agree(self) -> bool:
        said = {name: rooms.own for name, rooms in self.rooms.items()}
        return all(
            rooms.known == {f: room for f, room in said.items() if f != name}
            for name, rooms in self.rooms.items()
        )


def test_35_functions_that_start_know_of_each_other_soon_and_then_say_next_to_nothing() -> None:
    world = Everybody(35)
    for name in world.rooms:
        world.has(name, 1000)
    rounds = 0
    while not all(rooms.complete for rooms in world.rooms.values()):
        world.round()
        rounds += 1
    assert rounds <= 10
    for _ in range(10):
        world.round()
    world.sent = 0
    for _ in range(EXCHANGE_ROUNDS):
        world.round()
    assert world.sent == 35, "all-to-all it were 35 * 34 in each of two rounds"


def test_news_reaches_everybody_by_rumour() -> None:
    world = Everybody(35)
    for name in world.rooms:
        world.has(name, 1000)
    while not world.agree():
        world.round()
    for _ in range(10):
        world.round()
    world.has(FunctionID("schedule-7"), 500)
    told = 0
    while not world.agree():
        world.round()
        told += 1
    assert told <= EXCHANGE_ROUNDS + 2


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**16),
    st.integers(2, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 64_000)), max_size=30),
)
def test_all_agree_in_the_end_over_a_network_that_loses_repeats_and_reorders(
    seed: int, count: int, changes: list[tuple[int, int]]
) -> None:
    world = Everybody(count, random.Random(seed))
    names = list(world.rooms)
    for who, free in changes:
        world.has(names[who % count], free)
        world.round()
    world.chance = None
    for _ in range(60 * EXCHANGE_ROUNDS):
        if world.agree():
            break
        world.round()
    assert world.agree()


def test_an_older_word_never_replaces_a_newer_one_and_is_answered_with_it() -> None:
    rooms = Rooms(FunctionID("a"))
    rooms.view({FunctionID("a"), FunctionID("b")})
    new = Room(FunctionID("b"), (2, 1), cpu(5), cpu(5))
    assert rooms.heard([new]) == ()
    assert rooms.heard([new._replace(version=(1, 9), free=cpu(9))]) == (new,)
    assert rooms.known[FunctionID("b")] == new
    assert rooms.heard([Room(FunctionID("gone"), (1, 1), cpu(1), cpu(1))]) == ()
    assert FunctionID("gone") not in rooms.known


def test_a_small_change_is_no_news_but_comes_with_the_exchange() -> None:
    rooms = Rooms(FunctionID("a"))
    rooms.view({FunctionID("a"), FunctionID("b")})
    rooms.heard([Room(FunctionID("b"), (1, 1), cpu(1), cpu(1))])
    rooms.describe(cpu(8000), cpu(8000), 1, None)
    while rooms.round():
        pass
    for left in range(8000, 7200, -100):
        rooms.describe(cpu(left), cpu(left), 1, None)
        for gossip in rooms.round():
            assert gossip.wants
    rooms.describe(cpu(6000), cpu(6000), 1, None)
    (gossip,) = rooms.round()
    assert [(r.function, r.free) for r in gossip.rooms] == [("a", cpu(6000))]


def test_what_a_lender_answers_is_exact_and_ends_the_deduction() -> None:
    lender, borrower = Rooms(FunctionID("a")), Rooms(FunctionID("b"))
    for rooms in (lender, borrower):
        rooms.view({FunctionID("a"), FunctionID("b"), FunctionID("c")})
    lender.describe(cpu(8000), cpu(8000), 1, None)
    borrower.heard([lender.own, Room(FunctionID("c"), (1, 1), cpu(7900), cpu(7900))])
    assert borrower.lender([cpu(1000)], ()) == "a"
    assert borrower.lender([cpu(1000)], ()) == "c", "a has less by what it was asked for"
    lender.describe(cpu(7950), cpu(7950), 1, None, exactly=True)
    borrower.heard([lender.own])
    assert borrower.lender([cpu(1000)], ()) == "a", "it has said what it has left"


def test_a_burst_of_borrowers_spreads_over_the_roomiest() -> None:
    """200 functions that all know the same borrow at once: nobody is asked by all, and none that is nearly full."""
    names = [FunctionID(f"schedule-{k}") for k in range(35)]
    known = [Room(f, (1, 1), cpu(1000 * k), cpu(4000)) for k, f in enumerate(names)]
    asked: Counter[FunctionID] = Counter()
    for k in range(200):
        borrower = Rooms(FunctionID(f"borrower-{k}"))
        borrower.view({*names, borrower.me})
        borrower.heard(known)
        lender = borrower.lender([cpu(1000)], ())
        assert lender is not None
        asked[lender] += 1
    assert max(asked.values()) <= 70, asked
    assert set(asked) <= set(names[-8:])


def test_one_borrower_does_not_ask_for_more_than_there_is() -> None:
    rooms = Rooms(FunctionID("me"))
    rooms.view({FunctionID(f) for f in ("me", "a", "b")})
    rooms.heard([Room(FunctionID(f), (1, 1), cpu(10_000), cpu(10_000)) for f in ("a", "b")])
    asked = Counter(rooms.lender([cpu(1000)], ()) for _ in range(10))
    assert asked == {"a": 5, "b": 5}
    assert rooms.lender([cpu(99_000)], ()) is None
    assert rooms.lender([cpu(1000)], tuple(rooms.known)) is None
