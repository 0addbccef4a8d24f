"""An activator's admission of one revision: Knative's policies and capacities, order, bounds, flapping pods."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kserve_ext.core.knative.activation import FULL, HELD, Activation, Room, Tracker
from kserve_ext.core.knative.assignment import Share


@dataclass(frozen=True)
class Request:
    id: int
    held_bytes: int = 10
    started: float = 0.0


def activation(
    concurrency: int, *pods: str, most_held: int = 100, room: Room | None = None
) -> Activation[Request]:
    made: Activation[Request] = Activation(
        concurrency, most_held, room or Room(1 << 20), random.Random(7).random
    )
    made.use(pods)
    return made


def sent(target: Activation[Request], k: int = 0) -> Tracker:
    tracker = target.submit(Request(k))
    assert isinstance(tracker, Tracker)
    return tracker


def to(target: Activation[Request], n: int) -> list[str]:
    return [sent(target, k).addr for k in range(n)]


@pytest.mark.parametrize(
    ("concurrency", "pods", "share", "capacity"),
    [
        (10, 1, Share(0, 1), 10),
        (10, 2, Share(0, 1), 20),
        (10, 2, Share(0, 2), 10),
        (10, 3, Share(0, 2), 20),
        (10, 3, Share(1, 2), 10),
        (1, 5, Share(0, 2), 3),
        (1, 5, Share(1, 2), 2),
        (42, 6, Share(0, 4), 84),
        (42, 0, Share(0, 4), 0),
        (0, 3, Share(0, 4), 1),
        (0, 0, Share(), 0),
    ],
)
def test_capacity_of_pods(concurrency: int, pods: int, share: Share, capacity: int) -> None:
    target = activation(concurrency, *(f"ip{k}" for k in range(pods)))
    target.take_share(share)
    assert target.capacity == capacity


@pytest.mark.parametrize(
    ("concurrency", "ready", "activators", "capacity"),
    [(10, 10, 5, 20), (10, 10, 200, 1), (10, 0, 1, 0), (0, 0, 1, 0), (0, 7, 1, 1)],
)
def test_capacity_of_the_service(concurrency: int, ready: int, activators: int, capacity: int) -> None:
    target = activation(concurrency, "ip0")
    target.take_share(Share(0, activators))
    target.use([], "10.96.0.1:80", ready)
    assert target.capacity == capacity
    assert [t.addr for t in target.assigned] == (["10.96.0.1:80"] if ready else [])


def test_few_slots_fill_the_first_pod_first() -> None:
    target = activation(3, "b", "a", "c")
    assert to(target, 7) == ["a"] * 3 + ["b"] * 3 + ["c"]
    target.release(target.trackers["a"])
    assert to(target, 2) == ["a", "c"]


def test_many_slots_go_round() -> None:
    target = activation(5, "a", "b", "c")
    assert to(target, 4) == ["a", "b", "c", "a"]
    target.use(["a", "b"])
    assert to(target, 2) == ["b", "a"]


def test_round_robin_skips_full_pods_and_wraps() -> None:
    target = activation(4, "a", "b", "c")
    for _ in range(12):
        sent(target)
    for addr in ("b", "c", "b"):
        target.release(target.trackers[addr])
    assert to(target, 3) == ["b", "c", "b"]
    assert target.submit(Request(99)) == HELD


def test_without_a_limit_the_less_loaded_of_two() -> None:
    target = activation(0, "a", "b")
    for _ in range(10):
        sent(target)
    assert {addr: t.in_flight for addr, t in target.trackers.items()} == {"a": 5, "b": 5}
    target = activation(0, *(f"ip{k}" for k in range(10)))
    for _ in range(1000):
        sent(target)
    loads = [t.in_flight for t in target.trackers.values()]
    assert sum(loads) == 1000
    assert max(loads) - min(loads) <= 5


def test_without_a_limit_requests_are_held_only_while_there_is_no_pod() -> None:
    target = activation(0)
    assert [target.submit(Request(k)) for k in range(3)] == [HELD] * 3
    target.use(["a"])
    assert [(r.id, t.addr) for r, t in target.drain()] == [(0, "a"), (1, "a"), (2, "a")]


def test_freed_slots_go_to_those_held_longest() -> None:
    target = activation(1, "a")
    tracker = sent(target, 0)
    assert [target.submit(Request(k)) for k in (1, 2, 3)] == [HELD] * 3
    assert target.cancel(Request(2))
    assert not target.cancel(Request(2))
    assert target.release(tracker) == Request(1)
    assert target.release(tracker) == Request(3)
    assert target.release(tracker) is None
    assert (target.in_flight, target.held) == (0, 0)


def test_what_is_held_says_how_long_it_has_waited_the_oldest_first() -> None:
    target = activation(1, "a")
    tracker = sent(target, 0)
    for k, came in ((1, 5.0), (2, 5.5), (3, 5.75)):
        target.submit(Request(k, started=came))
    assert target.waits_us(6.0, 2) == (1_000_000, 500_000)
    target.put_back(Request(4, started=5.25))
    assert target.waits_us(6.0, 9) == (1_000_000, 750_000, 500_000, 250_000)
    while target.release(tracker) is not None:
        pass
    assert target.waits_us(6.0, 9) == ()


def test_one_that_could_not_be_sent_goes_first() -> None:
    target = activation(1, "a", "b")
    sent(target, 0), sent(target, 1)
    target.submit(Request(2))
    target.use(["b"])
    target.put_back(Request(0))
    assert target.release(target.trackers["a"]) is None
    assert target.release(target.trackers["b"]) == Request(0)
    assert "a" not in target.trackers


def test_what_is_in_flight_counts_while_its_pod_is_away() -> None:
    target = activation(1, "a", "b")
    assert to(target, 2) == ["a", "b"]
    target.use(["b"])
    assert target.submit(Request(2)) == HELD
    target.use(["a", "b"])
    assert list(target.drain()) == [], "the pod that came back is still busy"
    target.check()
    assert target.release(target.trackers["a"]) == Request(2)


def test_bounds_of_holding() -> None:
    room = Room(35)
    first, second = activation(1, most_held=2, room=room), activation(1, most_held=5, room=room)
    assert [first.submit(Request(k)) for k in range(3)] == [HELD, HELD, FULL]
    assert [second.submit(Request(k)) for k in range(2)] == [HELD, FULL]
    assert first.dismiss() == [Request(0), Request(1)]
    assert room.held_bytes == 10
    assert second.submit(Request(3, 25)) == HELD


PODS = [f"ip{k}" for k in range(5)]


class ActivationMachine(RuleBasedStateMachine):
    """Against a model of what is in flight where and who is held in which order."""

    @initialize(concurrency=st.sampled_from([0, 1, 2, 3, 4, 7]), seed=st.integers(0, 9))
    def begin(self, concurrency: int, seed: int) -> None:
        self.concurrency = concurrency
        self.room = Room(120)
        self.target: Activation[Request] = Activation(concurrency, 8, self.room, random.Random(seed).random)
        self.in_flight: dict[Request, Tracker] = {}
        self.held: deque[Request] = deque()
        self.count = 0

    def went(self, request: Request, tracker: Tracker) -> None:
        assert tracker.at >= 0
        self.in_flight[request] = tracker
        if self.concurrency:
            assert tracker.in_flight <= tracker.limit

    def drain(self) -> None:
        for request, tracker in self.target.drain():
            assert request == self.held.popleft()
            self.went(request, tracker)

    @rule(size=st.integers(1, 40))
    def submit(self, size: int) -> None:
        request = Request(self.count, size)
        self.count += 1
        outcome = self.target.submit(request)
        if isinstance(outcome, Tracker):
            assert not self.held
            self.went(request, outcome)
        elif outcome == HELD:
            self.held.append(request)
        else:
            assert len(self.held) == 8 or sum(r.held_bytes for r in self.held) + size > 120

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.in_flight, key=lambda r: r.id)))
        tracker = self.in_flight.pop(request)
        following = self.target.release(tracker)
        if following is not None:
            assert following == self.held.popleft()
            self.went(following, tracker)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def not_sent(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.in_flight, key=lambda r: r.id)))
        tracker = self.in_flight.pop(request)
        self.target.use([t.addr for t in self.target.assigned if t is not tracker])
        self.target.put_back(request)
        self.held.appendleft(request)
        assert self.target.release(tracker) is None
        self.drain()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.held)))
        assert self.target.cancel(request)
        self.held.remove(request)

    @rule(pods=st.sets(st.sampled_from(PODS)))
    def use(self, pods: set[str]) -> None:
        self.target.use(pods)
        self.drain()

    @rule(ready=st.integers(0, 4))
    def use_service(self, ready: int) -> None:
        self.target.use([], "10.96.0.1:80", ready)
        self.drain()

    @rule(activators=st.integers(1, 6), data=st.data())
    def take_share(self, activators: int, data: st.DataObject) -> None:
        self.target.take_share(Share(data.draw(st.integers(0, activators - 1)), activators))
        self.drain()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "target"):
            self.target.check()
            assert self.target.in_flight == len(self.in_flight)
            assert self.target.held == len(self.held)
            assert self.room.held_bytes == sum(r.held_bytes for r in self.held)


TestActivation = ActivationMachine.TestCase
TestActivation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
