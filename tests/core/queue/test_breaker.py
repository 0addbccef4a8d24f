"""The breaker against a list of who waits, in any order of events."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kserve_ext.core.queue.breaker import FULL, GO, HELD, Breaker


class Breaking(RuleBasedStateMachine):
    @initialize(concurrency=st.integers(0, 3))
    def begin(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.breaker: Breaker[int] = Breaker(concurrency)
        self.running: set[int] = set()
        self.waiting: list[int] = []
        self.number = 0

    @rule()
    def submit(self) -> None:
        self.number += 1
        outcome = self.breaker.submit(self.number)
        if not self.concurrency or len(self.running) < self.concurrency:
            assert outcome == GO
            self.running.add(self.number)
        elif len(self.waiting) < 10 * self.concurrency:
            assert outcome == HELD
            self.waiting.append(self.number)
        else:
            assert outcome == FULL

    @precondition(lambda self: self.running)
    @rule()
    def release(self) -> None:
        self.running.pop()
        following = self.breaker.release()
        assert following == (self.waiting.pop(0) if self.waiting else None)
        if following is not None:
            self.running.add(following)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(gone)
        self.breaker.cancel(gone)

    @rule()
    def dismiss(self) -> None:
        assert self.breaker.dismiss() == self.waiting
        self.waiting = []

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.in_flight == len(self.running)
            assert self.breaker.held == len(self.waiting)
            assert self.breaker.pending == len(self.running) + len(self.waiting)
            assert not self.concurrency or len(self.running) <= self.concurrency


TestBreaking = Breaking.TestCase
