"""Waves of wake-ups: never too many, first come first served, nobody forgotten; what shrinks waits for them."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve_ext.core.knative.waves import (
    CALM_S,
    LONGEST_S,
    MOST_IN_BURST,
    MOST_KEPT_S,
    MOST_OVERDUE,
    PACE_S,
    Waves,
)


def test_a_burst_goes_in_order_as_places_get_free() -> None:
    waves: Waves[str] = Waves(2, 3.0)
    assert [waves.enter(key, 0.0) for key in "abcd"] == [True, True, False, False]
    assert waves.enter("a", 0.0), "it is there already"
    assert waves.free(1.0) == []
    waves.leave("b", 1.0)
    assert waves.free(1.0) == ["c"]
    assert not waves.enter("e", 1.0), "the place is for who waits"
    assert not waves.enter("d", 1.0)
    assert waves.enter("c", 1.0)
    assert waves.next_at == 3.0
    assert waves.free(3.0) == ["d"], "a had its time"
    waves.withdraw("d")
    waves.withdraw("c")
    assert waves.free(3.0) == ["e"], "c has its place all the same"
    assert waves.enter("e", 3.0)
    assert waves.next_at is None


def test_who_only_looks_uses_up_no_turn_to_shrink() -> None:
    waves: Waves[str] = Waves(1, 100.0)
    assert not waves.keep("z", 0.0), "it is no burst"
    assert waves.enter("a", 0.0)
    assert not waves.enter("b", 0.0)
    assert waves.keep("z", 0.0)
    assert waves.free(MOST_KEPT_S) == ["z"]
    assert not waves.keep("z", MOST_KEPT_S)
    assert not waves.keep("z", MOST_KEPT_S)
    assert waves.shrink("z", MOST_KEPT_S)
    assert waves.keep("z", MOST_KEPT_S)


def test_what_is_to_shrink_waits_for_the_end_of_the_burst_and_goes_in_groups() -> None:
    waves: Waves[str] = Waves(2, 100.0)
    assert waves.enter("a", 0.0)
    assert waves.enter("b", 0.0)
    assert waves.shrink("z", 0.0), "a and b are on their way, but that is no burst"
    assert not waves.enter("c", 0.0)
    assert [waves.shrink(key, 1.0) for key in "zyxw"] == [False] * 4
    assert not waves.shrink("z", 5.0), "asking again puts nothing off"
    waves.withdraw("w")
    for key in "abz":
        waves.leave(key, 6.0)
    assert waves.free(6.0) == ["c"]
    assert waves.enter("c", 6.0)
    assert waves.free(7.0) == []
    waves.leave("c", 8.0)
    assert waves.free(8.0 + CALM_S - 0.1) == []
    assert waves.next_at == 8.0 + CALM_S
    assert waves.free(8.0 + CALM_S) == ["z", "y"]
    assert waves.free(8.0 + CALM_S) == []
    assert waves.next_at == 8.0 + CALM_S + PACE_S
    assert waves.shrink("z", 10.0)
    assert not waves.shrink("x", 10.0), "not past those before it"
    assert waves.free(11.0) == ["x", "w"], (
        "w did not lose its place while it was not to be scaled for a moment"
    )
    assert waves.enter("a", 12.0)
    assert waves.enter("b", 12.0)
    assert not waves.enter("c", 12.0)
    assert waves.shrink("x", 12.0), "it was named before c came"
    assert not waves.shrink("x", 12.0)


def test_what_is_to_shrink_doesnt_wait_for_ever() -> None:
    waves: Waves[str] = Waves(1, 1000.0)
    waves.enter("a", 0.0)
    waves.enter("b", 0.0)
    assert not waves.shrink("z", 1.0)
    assert not waves.shrink("y", 2.0)
    assert waves.next_at == 1.0 + MOST_KEPT_S
    assert waves.free(1.0 + MOST_KEPT_S) == ["z"]
    assert waves.shrink("z", 1.0 + MOST_KEPT_S)
    assert waves.next_at == 2.0 + MOST_KEPT_S


def test_of_what_has_waited_long_enough_few_shrink_while_the_burst_lasts() -> None:
    waves: Waves[int] = Waves(8, 1000.0)
    for key in range(9):
        waves.enter(key, 0.0)
    for key in range(10, 30):
        assert not waves.shrink(key, 1.0)
    now = 1.0 + MOST_KEPT_S
    assert waves.free(now) == [10, 11]
    assert waves.free(now + PACE_S) == [12, 13]
    for key in range(9):
        waves.leave(key, now + PACE_S)
    over = now + PACE_S + CALM_S
    assert waves.free(over) == list(range(14, 22))


def test_after_a_burst_one_that_is_woken_holds_up_nobody_who_is_to_shrink() -> None:
    waves: Waves[str] = Waves(2, 3.0)
    for key in "abc":
        waves.enter(key, 0.0)
    for key in "uvwxyz":
        assert waves.keep(key, 0.0)
    for key in "abc":
        waves.leave(key, 0.0)
    assert waves.free(CALM_S) == ["u", "v"]
    assert waves.enter("d", CALM_S), "it gets no pod"
    now = CALM_S
    for pair in (["w", "x"], ["y", "z"]):
        now += PACE_S
        assert waves.next_at == now
        assert waves.free(now) == pair


def endless() -> Waves[int]:
    """A burst that doesn't end: all places are taken for ever, and one stands in line."""
    waves: Waves[int] = Waves(patience_s=math.inf)
    for key in range(-17, 0):
        waves.enter(key, 0.0)
    return waves


def test_in_a_burst_that_does_not_end_more_shrink_at_a_time_once_they_have_waited_long() -> None:
    waves = endless()
    for key in range(300):
        assert not waves.shrink(key, 0.0)
    now = 0.0
    named: list[int] = []
    while len(named) < 300:
        assert waves.next_at is not None
        assert waves.next_at > now
        now = waves.next_at
        group = waves.free(now)
        assert len(group) == (MOST_IN_BURST if now < LONGEST_S else min(MOST_OVERDUE, 300 - len(named)))
        named += group
    assert named == list(range(300))
    assert LONGEST_S < now <= LONGEST_S + PACE_S * 300 / MOST_OVERDUE


@given(
    st.lists(
        st.tuples(st.integers(0, 400).map(lambda number: number / 4), st.integers(1, 120)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_however_long_a_burst_who_wants_to_shrink_waits_no_longer_than_is_said(
    coming: list[tuple[float, int]],
) -> None:
    """`coming`: when so many want to shrink; each look is made when `next_at` says."""
    waves, asked, last = endless(), 0, -math.inf
    kept: set[int] = set()
    latest: dict[int, float] = {}
    coming = sorted(coming)
    while coming or kept:
        at = waves.next_at if waves.next_at is not None else math.inf
        if coming and coming[0][0] <= at:
            now, count = coming.pop(0)
            for key in range(asked, asked + count):
                assert not waves.shrink(key, now)
                latest[key] = now + LONGEST_S + PACE_S * (len(kept) // MOST_OVERDUE + 1)
                kept.add(key)
            asked += count
            continue
        named = waves.free(at)
        assert 0 < len(named) <= MOST_OVERDUE
        assert at - last >= PACE_S
        last = at
        assert named == sorted(kept)[: len(named)], "in the order in which they came"
        for key in named:
            assert at <= latest[key]
            assert waves.shrink(key, at), "whoever is named may"
            kept.remove(key)
        assert waves.busy(at)


def test_what_was_to_shrink_and_is_woken_instead_does_not_shrink() -> None:
    waves: Waves[str] = Waves(1, 100.0)
    waves.enter("a", 0.0)
    waves.enter("b", 0.0)
    assert not waves.shrink("c", 0.0)
    assert not waves.enter("c", 0.0)
    waves.leave("a", 0.0)
    assert waves.enter("b", 0.0)
    waves.leave("b", 0.0)
    assert waves.free(0.0) == ["c"]
    assert waves.enter("c", 0.0)
    assert waves.free(100.0) == []


def test_a_revision_that_asks_its_activators_in_its_turn_keeps_it() -> None:
    """All are named once, each then is not to be scaled until its activator has answered: all have to shrink."""
    waves: Waves[int] = Waves(2, 100.0)
    for key in range(3):
        waves.enter(key, 0.0)
    left = set(range(20))
    for key in left:
        assert not waves.shrink(key, 1.0)
    for key in range(3):
        waves.leave(key, 1.0)
    now = 1.0 + CALM_S
    while left:
        now = max(now, waves.next_at or now)
        named = waves.free(now)
        assert named, "somebody has its turn"
        for key in named:
            waves.withdraw(key)  # it asks
        for key in named:
            assert waves.shrink(key, now + 0.1)
            left.discard(key)


def test_a_few_at_once_are_no_burst() -> None:
    waves: Waves[str] = Waves(1, 3.0)
    waves.enter("a", 0.0)
    assert not waves.busy(0.0)
    waves.enter("b", 0.0)
    assert waves.busy(0.0)
    assert waves.busy(5.0), "b is in line"
    waves.enter("b", 5.0)
    waves.leave("a", 9.0)
    assert waves.busy(9.0 + CALM_S), "b had its time, but it has no pod"
    waves.leave("b", 20.0)
    assert waves.busy(20.0 + CALM_S - 0.1)
    assert not waves.busy(20.0 + CALM_S)


def test_a_burst_does_not_wait_for_ever_for_a_pod_that_never_comes() -> None:
    waves: Waves[str] = Waves(1, 3.0)
    waves.enter("a", 0.0)
    waves.enter("b", 0.0)
    waves.enter("b", 3.0)
    assert waves.busy(6.0 + MOST_KEPT_S - 0.1)
    assert not waves.busy(6.0 + MOST_KEPT_S)


def test_it_is_a_burst_as_well_where_others_are_woken_another_way() -> None:
    waves: Waves[str] = Waves(1)
    waves.goes_on(10.0)
    assert not waves.shrink("a", 11.0)
    assert waves.next_at == 10.0 + CALM_S
    waves.goes_on(11.0)
    assert waves.free(10.0 + CALM_S) == []
    assert waves.free(11.0 + CALM_S) == ["a"]
    assert not waves.busy(11.0 + CALM_S)


class Burst(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.waves: Waves[int] = Waves(3, 2.0)
        self.now = 0.0
        self.until: dict[int, float] = {}
        self.line: list[int] = []
        self.kept: dict[int, float] = {}
        self.named: dict[int, float] = {}

    def unline(self, key: int) -> None:
        if key in self.line:
            self.line.remove(key)

    def unkeep(self, key: int) -> None:
        self.kept.pop(key, None)
        self.named.pop(key, None)

    def expire(self) -> None:
        self.until = {key: until for key, until in self.until.items() if until > self.now}
        self.named = {key: until for key, until in self.named.items() if until > self.now}

    @rule(key=st.integers(0, 9))
    def enter(self, key: int) -> None:
        entered = self.waves.enter(key, self.now)
        self.unkeep(key)
        if key in self.until:
            assert entered
            return
        if key not in self.line:
            self.line.append(key)
        assert entered == (self.line.index(key) < 3 - len(self.until))
        if entered:
            self.line.remove(key)
            self.until[key] = self.now + 2.0

    @rule(key=st.integers(0, 9))
    def leave(self, key: int) -> None:
        self.waves.leave(key, self.now)
        self.until.pop(key, None)
        self.unline(key)

    @rule(key=st.integers(0, 9))
    def withdraw(self, key: int) -> None:
        self.waves.withdraw(key)
        self.unline(key)

    @rule(key=st.integers(0, 9))
    def shrink(self, key: int) -> None:
        waits = self.waves.busy(self.now) or bool(self.kept)
        may = self.waves.shrink(key, self.now)
        self.unline(key)
        if key in self.named or may:
            assert may
            self.unkeep(key)
        else:
            assert waits
            self.kept.setdefault(key, self.now)

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, MOST_KEPT_S, LONGEST_S]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        self.expire()
        free = self.waves.free(self.now)
        entering = self.line[: 3 - len(self.until)]
        assert free[: len(entering)] == entering
        shrinking = free[len(entering) :]
        assert shrinking == list(self.kept)[: len(shrinking)], "in order"
        overdue = sum(since + LONGEST_S <= self.now for since in self.kept.values())
        most = max(MOST_IN_BURST, min(3, overdue)) if self.waves.busy(self.now) else 3
        assert len(shrinking) <= most
        for key in shrinking:
            assert not self.waves.busy(self.now) or self.kept[key] + MOST_KEPT_S <= self.now
            del self.kept[key]
            self.named[key] = self.now + MOST_KEPT_S

    @rule()
    def follow_the_clock(self) -> None:
        """Whoever looks when it is told to names all that are kept in a bounded time, and never spins."""
        looked = 0
        while (at := self.waves.next_at) is not None and not self.line:
            assert at > self.now or looked == 0
            self.time(max(0.0, at - self.now))
            looked += 1
            assert looked < 40

    @invariant()
    def bounded(self) -> None:
        assert len(self.until) <= 3


TestBurst = Burst.TestCase
TestBurst.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
