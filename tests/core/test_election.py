"""Leader election: client-go's rules one by one, then many candidates in a bad world, of whom never two lead."""

from __future__ import annotations

import heapq
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.election import Claim, Election, ElectionSpec, LeaseRecord

SPEC = ElectionSpec("me", lease_s=60.0, renew_s=40.0, retry_s=10.0)


def record(version: int, holder: str, duration_s: float = 60.0, transitions: int = 3) -> LeaseRecord:
    return LeaseRecord(str(version), holder, duration_s, transitions, "2026-01-01T00:00:00.000000Z")


def test_a_lease_that_is_not_there_is_created() -> None:
    election = Election(SPEC)
    election.observe(None, 0.0)
    assert election.decide(0.0) == Claim(None, 0, keeps_acquired=False)


def test_one_that_was_given_back_is_taken_at_once() -> None:
    election = Election(SPEC)
    election.observe(record(1, ""), 0.0)
    assert election.decide(0.0) == Claim(record(1, ""), 4, keeps_acquired=False)


def test_anothers_is_respected_for_as_long_as_we_have_seen_it_unchanged() -> None:
    election = Election(SPEC)
    election.observe(record(1, "other", 30.0), 100.0)
    election.observe(record(1, "other", 30.0), 129.0)
    assert election.decide(129.9) == "wait"
    election.observe(record(2, "other", 30.0), 129.9)  # renewed
    assert election.decide(159.8) == "wait"
    assert election.decide(159.9) == Claim(record(2, "other", 30.0), 4, keeps_acquired=False)


def test_a_renewal_keeps_acquire_time_and_transitions() -> None:
    election = Election(SPEC)
    election.observe(record(1, "me"), 0.0)  # from an earlier life under this name
    assert not election.leads(0.0)
    assert election.decide(0.0) == Claim(record(1, "me"), 3, keeps_acquired=True)


def test_leading_counts_from_when_the_claim_was_sent_and_ends_by_itself() -> None:
    election = Election(SPEC)
    election.claimed(record(1, "me"), sent_at=10.0, now=15.0)
    assert election.gives_up_at() == 50.0
    assert election.leads(49.9)
    assert not election.leads(50.0)
    assert election.holds
    election.claimed(record(2, "me"), sent_at=55.0, now=55.0)
    assert election.leads(94.0)
    election.lost()
    assert not election.leads(56.0)
    assert not election.holds


def test_anothers_name_on_the_lease_ends_leading_at_once() -> None:
    election = Election(SPEC)
    election.claimed(record(1, "me"), 0.0, 0.0)
    election.observe(record(2, "other"), 1.0)
    assert not election.leads(1.0)
    assert election.decide(1.0) == "wait"


def test_a_holder_tries_regularly_and_others_are_spread_out() -> None:
    election = Election(SPEC)
    assert election.next_try_s(0.0) == 10.0
    assert election.next_try_s(1.0) == pytest.approx(22.0)
    election.claimed(record(1, "me"), 0.0, 0.0)
    assert election.next_try_s(1.0) == 10.0


@pytest.mark.parametrize(
    ("identity", "times"), [("", (60.0, 40.0, 10.0)), ("me", (40.0, 40.0, 10.0)), ("me", (60.0, 10.0, 10.0))]
)
def test_times_that_cannot_work_are_refused(identity: str, times: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError):
        ElectionSpec(identity, *times)


class Candidate:
    """A candidate whose clock is set wrong and runs wrong, and whose messages are late or lost."""

    def __init__(self, name: str, chance: Random) -> None:
        self.election = Election(ElectionSpec(name, SPEC.lease_s, SPEC.renew_s, SPEC.retry_s))
        self.offset = chance.uniform(-1e6, 1e6)
        self.rate = chance.uniform(0.9, 1.1)
        self.cut_off_until = 0.0
        self.life = 0  # a crash ends a life: what was sent in it is answered to nobody

    def clock(self, now: float) -> float:
        return self.offset + self.rate * now


class World:
    """The Lease as the API server has it, and what is under way to and from it."""

    def __init__(self, seed: int, candidates: int, bad_until: float) -> None:
        self.chance = Random(seed)
        self.lease: LeaseRecord | None = None
        self.version = 0
        self.now = 0.0
        self.bad_until = bad_until
        self.candidates = [Candidate(f"c{k}", self.chance) for k in range(candidates)]
        self.events: list[tuple[float, int, str, int, int, object]] = []
        self.count = 0
        for index in range(candidates):
            self.later(self.chance.uniform(0, 10), "attempt", index)

    def later(self, delay: float, what: str, index: int, data: object = None) -> None:
        self.count += 1
        life = self.candidates[index].life
        heapq.heappush(self.events, (self.now + delay, self.count, what, index, life, data))

    def trip(self) -> float | None:
        """How long a message is under way; None = for ever."""
        if self.now >= self.bad_until:
            return self.chance.uniform(0.0, 0.05)
        return None if self.chance.random() < 0.15 else self.chance.choice([0.01, 0.5, 8.0, 30.0, 90.0])

    def send(self, what: str, index: int, data: object) -> None:
        delay = self.trip()
        if delay is not None and self.now >= self.candidates[index].cut_off_until:
            self.later(delay, what, index, data)

    def leaders(self) -> list[int]:
        return [k for k, c in enumerate(self.candidates) if c.election.leads(c.clock(self.now))]

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] < until:
            self.now, _, what, index, life, data = heapq.heappop(self.events)
            # The server carries out what was sent by a candidate that has died since.
            if what in ("read", "write") or life == self.candidates[index].life:
                getattr(self, what)(index, data)
            assert len(self.leaders()) <= 1, f"two lead at {self.now}"
        self.now = until

    # What a candidate does and hears.

    def attempt(self, index: int, data: object) -> None:
        candidate = self.candidates[index]
        election, clock = candidate.election, candidate.clock(self.now)
        self.later(election.next_try_s(self.chance.random()) / candidate.rate, "attempt", index)
        if self.now < self.bad_until and self.chance.random() < 0.03:
            candidate.cut_off_until = min(self.bad_until, self.now + self.chance.uniform(30.0, 200.0))
        if self.now < self.bad_until and self.chance.random() < 0.03:
            self.crash(index)
        elif election.leads(clock):
            self.claim(index)
        else:
            self.send("read", index, None)

    def crash(self, index: int) -> None:
        candidate = self.candidates[index]
        candidate.life += 1
        candidate.election = Election(candidate.election.spec)
        self.later(self.chance.uniform(0, 30), "attempt", index)

    def claim(self, index: int) -> None:
        candidate = self.candidates[index]
        clock = candidate.clock(self.now)
        act = candidate.election.decide(clock)
        if isinstance(act, Claim):
            self.send("write", index, (act, clock))

    def seen(self, index: int, data: object) -> None:
        assert data is None or isinstance(data, LeaseRecord)
        candidate = self.candidates[index]
        candidate.election.observe(data, candidate.clock(self.now))
        self.claim(index)

    def written(self, index: int, data: object) -> None:
        assert isinstance(data, tuple)
        record, sent_at = data
        candidate = self.candidates[index]
        candidate.election.claimed(record, sent_at, candidate.clock(self.now))

    def refused(self, index: int, data: object) -> None:
        self.send("read", index, None)

    # What the server does.

    def read(self, index: int, data: object) -> None:
        self.send("seen", index, self.lease)

    def write(self, index: int, data: object) -> None:
        assert isinstance(data, tuple)
        act, sent_at = data
        if act.over != self.lease:
            self.send("refused", index, None)
            return
        self.version += 1
        holder = self.candidates[index].election.spec.identity
        self.lease = record(self.version, holder, SPEC.lease_s, act.transitions)
        self.send("written", index, (self.lease, sent_at))


@given(st.integers(0, 2**32), st.integers(2, 4))
def test_never_do_two_lead_and_in_a_good_world_one_does(seed: int, candidates: int) -> None:
    world = World(seed, candidates, bad_until=2000.0)
    world.run(2000.0)
    world.run(2400.0)
    assert len(world.leaders()) == 1
    (leader,) = world.leaders()
    for minute in range(1, 6):  # and it stays
        world.run(2400.0 + 60.0 * minute)
        assert world.leaders() == [leader]
