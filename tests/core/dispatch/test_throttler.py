"""The throttler against a naïve model, and its bounds one by one."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.dispatch.facts import UNLIMITED
from kserve_ext.core.dispatch.throttler import HELD, LEAST_BLOCK_S, TOO_LARGE, TOO_MANY, Throttler, Tracker
from kserve_ext.core.facts import Hold
from kserve_ext.core.ids import InstanceID

A, B, C = InstanceID("a"), InstanceID("b"), InstanceID("c")


@dataclass(frozen=True)
class Request:
    id: int
    held_bytes: int = 10


def granted(*slots: tuple[InstanceID, int], hold: Hold | None = None) -> Throttler[Request]:
    throttler: Throttler[Request] = Throttler(hold or Hold(), 0.0)
    throttler.valid_until = 1e9
    throttler.grant([(i, f"{i}:80", n, 0.0) for i, n in slots], 0.0)
    return throttler


def sent(throttler: Throttler[Request], k: int, now: float = 0.0) -> InstanceID:
    tracker = throttler.submit(Request(k), now)
    assert isinstance(tracker, Tracker)
    return tracker.id


def test_the_least_loaded_instance_is_next_and_ties_go_round() -> None:
    throttler = granted((A, UNLIMITED), (B, UNLIMITED), (C, UNLIMITED))
    assert [sent(throttler, k) for k in range(6)] == [A, B, C, A, B, C]
    throttler.release(B, 0.0)
    assert [sent(throttler, k) for k in range(2)] == [B, A]


def test_the_freed_slot_goes_to_the_one_held_longest() -> None:
    throttler = granted((A, 1))
    assert sent(throttler, 0) == A
    assert [throttler.submit(Request(k), 0.0) for k in (1, 2, 3)] == [HELD] * 3
    assert throttler.cancel(Request(1), 0.0)
    assert not throttler.cancel(Request(1), 0.0)
    assert [throttler.release(A, 0.0) for _ in range(3)] == [Request(2), Request(3), None]


def test_one_that_an_instance_gave_back_goes_first_and_elsewhere() -> None:
    throttler = granted((A, 1), (B, 1))
    assert (sent(throttler, 0), sent(throttler, 1)) == (A, B)
    throttler.submit(Request(2), 0.0)
    throttler.put_back(Request(0), A, 1.0)
    assert list(throttler.drain(1.0)) == [], "the instance that failed is spared"
    assert throttler.release(B, 1.0) == Request(0)
    throttler.expired(1.0 + LEAST_BLOCK_S)
    assert [(r, t.id) for r, t in throttler.drain(1.2)] == [(Request(2), A)]


def test_bounds_of_holding() -> None:
    throttler = granted(hold=Hold(seconds=5.0, requests=2, bytes=25))
    assert [throttler.submit(Request(k), k) for k in range(3)] == [HELD, HELD, TOO_MANY]
    throttler.cancel(Request(0), 3.0)
    assert throttler.submit(Request(3, 16), 3.0) == TOO_LARGE
    assert throttler.submit(Request(4, 15), 3.0) == HELD
    assert throttler.expired(5.9) == []
    assert throttler.expired(6.0) == [Request(1)]
    assert (throttler.held, throttler.held_bytes) == (1, 15)


def test_slots_taken_back_are_used_until_their_requests_end() -> None:
    throttler = granted((A, 3))
    for k in range(3):
        sent(throttler, k)
    throttler.grant([(A, "a:80", 1, 0.0)], 0.0)
    assert throttler.leases == ((A, 3),)
    throttler.submit(Request(9), 0.0)
    assert [throttler.release(A, 0.0) for _ in range(2)] == [None, None]
    assert throttler.leases == ((A, 1),)
    assert throttler.release(A, 0.0) == Request(9)
    throttler.grant([], 0.0)
    assert throttler.leases == ((A, 1),)
    throttler.release(A, 0.0)
    assert throttler.trackers == {}


def test_a_lease_that_is_over_admits_nothing_and_loses_nothing() -> None:
    throttler = granted((A, 2))
    throttler.valid_until = 3.0
    assert sent(throttler, 0, 2.9) == A
    assert throttler.submit(Request(1), 3.0) == HELD
    assert throttler.release(A, 3.1) is None
    throttler.valid_until = 6.0
    assert [(r, t.id) for r, t in throttler.drain(3.2)] == [(Request(1), A)]


def test_idle_slots_are_given_back_after_a_whole_period() -> None:
    throttler = granted((A, 4))
    sent(throttler, 0)
    sent(throttler, 1)
    throttler.release(A, 0.0)
    assert not throttler.give_idle(), "granted in this period"
    sent(throttler, 2)
    throttler.release(A, 0.0)
    assert throttler.give_idle()
    assert throttler.leases == ((A, 2),)


def test_a_grant_that_says_the_same_again_does_not_make_slots_busy() -> None:
    """Home repeats it with each report, several times within a period."""
    throttler = granted((A, 4))
    assert not throttler.give_idle()
    throttler.grant([(A, "a:1", 4, 0.0)], 0.5)
    assert throttler.give_idle()
    assert not throttler.leases
    throttler.grant([(A, "a:1", 2, 0.0)], 1.0)
    throttler.give_idle()
    throttler.grant([(A, "a:1", 3, 0.0)], 1.5)
    assert not throttler.give_idle(), "more were granted in this period"
    assert throttler.leases == ((A, 3),)


def test_the_integral_counts_held_and_in_flight() -> None:
    throttler = granted((A, 1))
    sent(throttler, 0, 1.0)
    throttler.submit(Request(1), 2.0)
    throttler.release(A, 4.0)
    throttler.release(A, 5.0)
    assert throttler.area(9.0) == 1 * 1 + 2 * 2 + 1 * 1
    assert (throttler.arrived, throttler.completed) == (2, 2)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=60), st.booleans())
def test_equals_a_naive_model(steps: list[tuple[int, int]], limited: bool) -> None:
    """No slot is used twice, nothing is held beside a usable slot, order of arrival, everything is accounted for."""
    throttler = granted(hold=Hold(seconds=1e6, requests=8))
    waiting: list[Request] = []
    running: list[tuple[Request, InstanceID]] = []
    slots: dict[InstanceID, int] = {}
    count = 0

    def used(instance: InstanceID) -> int:
        return sum(i == instance for _, i in running)

    def room() -> list[InstanceID]:
        return [i for i, n in slots.items() if n == UNLIMITED or used(i) < n]

    def go(request: Request, instance: InstanceID) -> None:
        assert instance in room()
        assert used(instance) == min(used(i) for i in room())
        running.append((request, instance))

    for action, number in steps:
        if action <= 2:
            count += 1
            outcome = throttler.submit(Request(count), 0.0)
            if isinstance(outcome, Tracker):
                assert not waiting
                go(Request(count), outcome.id)
            elif len(waiting) < 8:
                assert outcome == HELD
                waiting.append(Request(count))
            else:
                assert outcome == TOO_MANY
        elif action == 3 and running:
            _, instance = running.pop(number % len(running))
            following = throttler.release(instance, 0.0)
            assert (following is not None) == bool(waiting and instance in room())
            if following is not None:
                assert following == waiting.pop(0)
                running.append((following, instance))
        elif action == 4:
            slots = dict.fromkeys((A, B, C)[: number % 4], number % 4 if limited else UNLIMITED)
            slots = {i: n for i, n in slots.items() if n}
            throttler.grant([(i, f"{i}:80", n, 0.0) for i, n in slots.items()], 0.0)
            for request, tracker in throttler.drain(0.0):
                assert request == waiting.pop(0)
                go(request, tracker.id)
        elif action == 5 and waiting:
            assert throttler.cancel(waiting.pop(number % len(waiting)), 0.0)
        throttler.check(0.0)
        assert throttler.all_held() == waiting
        assert not (waiting and room())
        assert throttler.in_flight == len(running)
