"""Waves of wake-ups: never more than so many, first come first served, nobody forgotten."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve_ext.core.knative.waves import Waves


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


class Burst(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.waves: Waves[int] = Waves(3, 2.0)
        self.now = 0.0
        self.until: dict[int, float] = {}
        self.line: list[int] = []

    @rule(key=st.integers(0, 9))
    def enter(self, key: int) -> None:
        entered = self.waves.enter(key, self.now)
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

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        self.until = {key: until for key, until in self.until.items() if until > self.now}
        assert self.waves.free(self.now) == self.line[: 3 - len(self.until)]
        assert self.waves.next_at == (min(self.until.values(), default=None) if self.line else None)

    @invariant()
    def bounded(self) -> None:
        assert len(self.until) <= 3


TestBurst = Burst.TestCase
TestBurst.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
