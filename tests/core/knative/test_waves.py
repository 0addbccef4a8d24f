"""Waves of wake-ups: never too many, first come first served, nobody forgotten; what shrinks waits for them."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve_ext.core.knative.waves import MOST_KEPT_S, Waves


def test_a_burst_goes_in_order_as_places_get_free() -> None:
    waves: Waves[str] = Waves(2, 3.0)
    assert [waves.enter(key, 0.0) for key in "abcd"] == [True, True, False, False]
    assert waves.enter("a", 0.0), "it is there already"
    assert waves.free(1.0) == []
    waves.leave("b")
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


def test_what_is_to_shrink_waits_while_somebody_is_in_line_and_is_named_once() -> None:
    waves: Waves[str] = Waves(1, 100.0)
    assert waves.shrink("z", 0.0), "nobody waits"
    assert waves.enter("a", 0.0)
    assert waves.shrink("z", 0.0), "a is on its way, nobody waits"
    assert not waves.enter("b", 0.0)
    assert [waves.shrink(key, at) for at, key in enumerate("zyx", 1)] == [False] * 3
    assert waves.next_at == 1.0 + MOST_KEPT_S
    assert not waves.shrink("z", 5.0), "asking again puts nothing off"
    waves.leave("z")
    assert not waves.shrink("z", 5.0), "a pod of it is no reason to"
    waves.withdraw("x")
    assert waves.free(1.0 + MOST_KEPT_S) == ["z"]
    assert waves.free(1.0 + MOST_KEPT_S) == []
    assert waves.shrink("z", 31.5)
    waves.leave("a")
    assert waves.free(31.5) == ["b"]
    assert waves.enter("b", 31.5)
    assert waves.free(31.5) == ["y"], "the line is empty"
    assert not waves.enter("c", 31.5)
    assert waves.shrink("y", 31.5), "it was named before c came"
    assert not waves.shrink("y", 31.5)


def test_what_was_to_shrink_and_is_woken_instead_does_not_shrink() -> None:
    waves: Waves[str] = Waves(1, 100.0)
    waves.enter("a", 0.0)
    waves.enter("b", 0.0)
    assert not waves.shrink("c", 0.0)
    assert not waves.enter("c", 0.0)
    waves.leave("a")
    assert waves.enter("b", 0.0)
    waves.leave("b")
    assert waves.free(0.0) == ["c"]
    assert waves.enter("c", 0.0)
    assert waves.free(0.0) == []


def test_it_is_busy_until_the_last_has_its_pod_or_has_had_its_time() -> None:
    waves: Waves[str] = Waves(1, 3.0)
    assert not waves.busy(0.0)
    waves.enter("a", 0.0)
    waves.enter("b", 0.0)
    assert waves.busy(5.0), "b is in line"
    waves.enter("b", 5.0)
    assert waves.busy(5.0)
    waves.leave("b")
    assert not waves.busy(5.0)


class Burst(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.waves: Waves[int] = Waves(3, 2.0)
        self.now = 0.0
        self.until: dict[int, float] = {}
        self.line: list[int] = []
        self.kept: dict[int, float] = {}
        self.named: set[int] = set()

    def forget(self, key: int) -> None:
        self.kept.pop(key, None)
        self.named.discard(key)

    @rule(key=st.integers(0, 9))
    def enter(self, key: int) -> None:
        entered = self.waves.enter(key, self.now)
        self.forget(key)
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
        self.waves.leave(key)
        self.until.pop(key, None)
        if key in self.line:
            self.line.remove(key)

    @rule(key=st.integers(0, 9))
    def withdraw(self, key: int) -> None:
        self.waves.withdraw(key)
        self.forget(key)
        if key in self.line:
            self.line.remove(key)

    @rule(key=st.integers(0, 9))
    def shrink(self, key: int) -> None:
        may = self.waves.shrink(key, self.now)
        if key in self.line:
            self.line.remove(key)
        assert may == (not self.line or key in self.named)
        if may:
            self.forget(key)
        else:
            self.kept.setdefault(key, self.now + MOST_KEPT_S)

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, MOST_KEPT_S]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        self.until = {key: until for key, until in self.until.items() if until > self.now}
        shrinking = [key for key, until in self.kept.items() if not self.line or until <= self.now]
        assert self.waves.free(self.now) == self.line[: 3 - len(self.until)] + shrinking
        for key in shrinking:
            del self.kept[key]
        self.named.update(shrinking)
        ends = [*self.until.values(), *self.kept.values()]
        assert self.waves.next_at == (min(ends, default=None) if self.line else None)
        assert self.waves.busy(self.now) == bool(self.until or self.line)

    @invariant()
    def bounded(self) -> None:
        assert len(self.until) <= 3


TestBurst = Burst.TestCase
TestBurst.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
