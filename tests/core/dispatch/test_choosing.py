"""A throttler whose requests prefer an instance: it is asked for, waited for no longer, nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.dispatch.choosing import ASK_S, FULL_S, ChoosingThrottler, Chosen, least_busy
from kserve_ext.core.dispatch.facts import UNLIMITED
from kserve_ext.core.dispatch.throttler import HELD, TOO_MANY, Tracker
from kserve_ext.core.facts import Hold
from kserve_ext.core.ids import InstanceID

A, B, C = InstanceID("a"), InstanceID("b"), InstanceID("c")


@dataclass(frozen=True)
class Request:
    id: int
    wish: InstanceID | None = None
    never: frozenset[InstanceID] = frozenset()
    held_bytes: int = 10


class Wishes:
    """The instance that a request names; else any that it does not exclude."""

    def __init__(self) -> None:
        self.went: list[tuple[int, InstanceID]] = []

    def choose(self, request: Request, there: Sequence[Tracker], now: float) -> Chosen | None:
        open_ = [t for t in there if t.id not in request.never]
        wished = [t for t in open_ if t.id == request.wish]
        return Chosen(least_busy(wished or open_)) if open_ else None

    def chosen(self, request: Request, chosen: Chosen, now: float) -> None:
        self.went.append((request.id, chosen.tracker.id))


def granted(*slots: tuple[InstanceID, int], hold: Hold | None = None) -> ChoosingThrottler[Request]:
    throttler: ChoosingThrottler[Request] = ChoosingThrottler(hold or Hold(), 0.0, Wishes())
    throttler.valid_until = 1e9
    grant(throttler, *slots)
    return throttler


def grant(throttler: ChoosingThrottler[Request], *slots: tuple[InstanceID, int]) -> None:
    throttler.grant([(i, f"{i}:80", n, 0.0) for i, n in slots], 0.0)


def went(throttler: ChoosingThrottler[Request], now: float = 0.0) -> list[tuple[int, InstanceID]]:
    return [(r.id, t.id) for r, t in throttler.drain(now)]


def test_the_preferred_one_although_it_is_busier() -> None:
    throttler = granted((A, UNLIMITED), (B, UNLIMITED))
    for k in range(3):
        outcome = throttler.submit(Request(k, A), 0.0)
        assert isinstance(outcome, Tracker)
        assert outcome.id == A
    outcome = throttler.submit(Request(3), 0.0)
    assert isinstance(outcome, Tracker)
    assert outcome.id == B


def test_home_is_asked_for_a_slot_of_the_preferred_one() -> None:
    throttler = granted((A, 0), (B, 2))
    assert throttler.submit(Request(1, A), 0.0) == HELD
    assert throttler.prefers(True) == ((A, 1),)
    assert went(throttler) == [], "home has not answered yet"
    grant(throttler, (A, 1), (B, 2))
    throttler.heard()
    assert went(throttler) == [(1, A)]
    assert throttler.prefers(True) == ()


def test_an_answer_without_it_sends_it_elsewhere_and_home_is_left_alone_for_a_while() -> None:
    throttler = granted((A, 0), (B, 3))
    throttler.submit(Request(1, A), 0.0)
    throttler.prefers(True)
    throttler.heard()
    assert went(throttler, 0.01) == [(1, B)]
    outcome = throttler.submit(Request(2, A), 0.02)
    assert isinstance(outcome, Tracker)
    assert outcome.id == B
    assert throttler.submit(Request(3, A), 0.02 + FULL_S) == HELD


def test_who_waits_for_an_answer_is_not_chosen_for_again_until_its_instance_has_a_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten thousand may wait, and each grant, release and tick looks at all of them."""
    throttler = granted((A, 0), (B, 2), (C, 1))
    for number in range(5):
        assert throttler.submit(Request(number, A), 0.0) == HELD
    right, chosen_for = Wishes.choose, list[int]()

    def choose(self: Wishes, request: Request, there: Sequence[Tracker], now: float) -> Chosen | None:
        chosen_for.append(request.id)
        return right(self, request, there, now)

    monkeypatch.setattr(Wishes, "choose", choose)
    assert went(throttler) == []
    assert isinstance(throttler.submit(Request(9, C), 0.0), Tracker)
    assert throttler.release(C, 0.0) is None
    assert chosen_for == [9]
    throttler.withdraw(A)
    assert went(throttler, 0.1) == [(0, B), (1, C), (2, B)], "it has gone: there is nothing to wait for"


def test_an_answer_to_an_older_demand_is_none() -> None:
    throttler = granted((A, 0), (B, 3))
    throttler.submit(Request(1, A), 0.0)
    throttler.heard()
    assert went(throttler) == []


def test_a_home_that_is_silent_is_not_waited_for() -> None:
    throttler = granted((A, 0), (B, 1))
    throttler.submit(Request(1, A), 0.0)
    assert went(throttler, ASK_S - 0.01) == []
    assert went(throttler, ASK_S) == [(1, B)]


def test_an_excluded_instance_holds_up_nobody_else() -> None:
    throttler = granted((A, 1))
    assert throttler.submit(Request(1, never=frozenset({A})), 0.0) == HELD
    outcome = throttler.submit(Request(2), 0.0)
    assert isinstance(outcome, Tracker)
    assert throttler.submit(Request(3), 0.0) == HELD
    assert throttler.release(A, 0.0) == Request(3)
    assert throttler.all_held() == [Request(1, never=frozenset({A}))]
    grant(throttler, (A, 1), (B, 1))
    assert went(throttler) == [(1, B)]


def test_a_named_instance_stays_known_without_a_slot_until_home_names_it_no_more() -> None:
    throttler = granted((A, 1), (B, 0))
    throttler.submit(Request(1), 0.0)
    grant(throttler, (A, 0), (B, 0))
    throttler.release(A, 0.0)
    assert set(throttler.trackers) == {A, B}
    grant(throttler, (B, 0))
    assert set(throttler.trackers) == {B}
    throttler.forget_all()
    assert not throttler.trackers


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 11), st.sampled_from((A, B, C, None))),
        max_size=60,
    )
)
def test_no_slot_twice_none_lost_and_order_kept_among_equals(
    steps: list[tuple[int, int, InstanceID | None]],
) -> None:
    throttler = granted(hold=Hold(seconds=1e6, requests=8))
    waiting: list[Request] = []
    running: list[tuple[Request, InstanceID]] = []
    slots: dict[InstanceID, int] = {}
    now = 0.0

    def go(request: Request, instance: InstanceID) -> None:
        assert sum(i == instance for _, i in running) < slots[instance]
        assert instance not in request.never
        running.append((request, instance))

    for count, (action, number, wish) in enumerate(steps):
        if action <= 2:
            request = Request(count, wish, frozenset({C}) if number % 4 == 0 else frozenset())
            outcome = throttler.submit(request, now)
            if isinstance(outcome, Tracker):
                go(request, outcome.id)
            elif outcome == HELD:
                waiting.append(request)
            else:
                assert outcome == TOO_MANY
                assert len(waiting) == 8
        elif action == 3 and running:
            _, instance = running.pop(number % len(running))
            following = throttler.release(instance, now)
            if following is not None:
                alike = [r for r in waiting if (r.wish, r.never) == (following.wish, following.never)]
                assert following == alike[0]
                waiting.remove(following)
                go(following, instance)
        elif action == 4:
            slots = {i: (number + k) % 3 for k, i in enumerate((A, B, C)[: 1 + number % 3])}
            grant(throttler, *slots.items())
        elif action == 5 and waiting:
            assert throttler.cancel(waiting.pop(number % len(waiting)), now)
        elif action == 6:
            throttler.prefers(True)
            throttler.heard()
        elif action == 7:
            now += ASK_S
        for request, tracker in throttler.drain(now):
            waiting.remove(request)
            go(request, tracker.id)
        throttler.check(now)
        assert throttler.all_held() == waiting
        assert throttler.in_flight == len(running)
        over = {i for i, n in slots.items() if sum(x == i for _, x in running) > n}
        assert all(throttler.trackers[i].in_flight for i in over), "what was taken back is used to its end"
