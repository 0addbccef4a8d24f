"""The cost model: it follows what transfers take, says why, tries what looked bad again, and never for much."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.kv_cost import RECOMPUTE, TRY_EVERY, WORST, Choice, Costs, Prior, prior, spoken
from kserve_ext.core.kv_plan import SHARE

KIB, MIB = 1 << 10, 1 << 20
RDMA, TCP = prior("rdma"), prior("tcp")


def pair(**known: Prior) -> Costs:
    made = Costs()
    for rung, what in (known or {"rdma": RDMA, "tcp": TCP}).items():
        made.know(rung, what)
    return made


def feed(
    costs: Costs, rung: str, setup_s: float, rate: float, count: int, noise: float = 0.0, now: float = 0.0
) -> float:
    chosen = random.Random(3)
    for _ in range(count):
        size = int(2 ** chosen.uniform(16, 27))
        now += 0.1
        costs.took(rung, size, (setup_s + size / rate) * (1 + noise * chosen.uniform(-1, 1)), now)
    return now


# --- what is expected


def test_before_anything_is_known_the_kind_and_the_link_speak() -> None:
    assert prior("rdma", 25e9).takes(0) == RDMA.takes(0)
    assert prior("rdma", 25e9).rate == pytest.approx(22.5e9)
    assert prior("tcp", 25e9).rate == pytest.approx(12.5e9)
    assert prior("shm", 25e9) == prior("shm")
    order = ["ipc", "shm", "rdma", "rdma-staged", "nixl", "tcp"]  # as for whoever doesn't choose (RUNGS)
    for size in (KIB, 16 * MIB):
        times = [prior(rung).takes(size) for rung in order]
        assert times == sorted(times)
    costs = pair()
    assert costs.expected_s("tcp", MIB, 0.0) == pytest.approx(TCP.takes(MIB))


def test_a_slow_first_transfer_counts_for_nothing_a_slow_second_one_does() -> None:
    """As measured between two engines on an H100: 1.1 ms for 2 MB by ipc, then 512 MB took shm six times."""
    costs = pair(ipc=prior("ipc"), shm=Prior(1e-4, 28e9))
    costs.took("ipc", 2 * MIB, 1.1e-3, 0.0)
    assert costs.choose(512 * MIB, ("ipc", "shm"), 0.1).rung == "ipc"
    costs.took("ipc", 2 * MIB, 1.1e-3, 0.2)
    assert costs.choose(512 * MIB, ("ipc", "shm"), 0.3).rung == "shm"


def test_a_fast_first_transfer_counts() -> None:
    costs = pair()
    costs.took("tcp", MIB, TCP.takes(MIB) / 10, 0.0)
    assert costs.expected_s("tcp", MIB, 0.0) < TCP.takes(MIB) / 2


@settings(max_examples=150)
@given(
    st.floats(1e-5, 0.05),
    st.floats(1e7, 5e10),
    st.floats(0.0, 0.3),
    st.floats(1e-5, 1e-2),
    st.floats(1e8, 5e10),
)
def test_it_learns_what_transfers_take(
    setup_s: float, rate: float, noise: float, known_s: float, known_rate: float
) -> None:
    """Whatever was assumed: 60 transfers later the expectation is right for all sizes that came."""
    costs = pair(rdma=Prior(known_s, known_rate))
    now = feed(costs, "rdma", setup_s, rate, 60, noise)
    for size in (64 * KIB, MIB, 16 * MIB, 128 * MIB):
        right = setup_s + size / rate
        assert costs.expected_s("rdma", size, now) == pytest.approx(right, rel=0.1 + 1.5 * noise)


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.floats(0, 1e3)), max_size=40), st.integers(0, 1 << 40))
def test_no_sample_makes_it_nonsense(samples: list[tuple[int, float]], size: int) -> None:
    """More bytes never take less, nothing takes no time, and all of it stays finite."""
    costs = pair()
    for at, (sample, seconds) in enumerate(samples):
        costs.took("tcp", sample, seconds, float(at))
    expected = costs.expected_s("tcp", size, 50.0)
    assert 0 < expected < float("inf")
    assert costs.expected_s("tcp", size + MIB, 50.0) >= expected


def test_one_that_was_held_up_is_no_reason_to_change_rungs() -> None:
    costs = pair()
    now = feed(costs, "rdma", 1e-4, 5e9, 60)
    now = feed(costs, "tcp", 5e-4, 1e9, 60, now=now)
    costs.took("rdma", MIB, 2.0, now)  # 6000 times what it takes
    assert costs.choose(64 * MIB, ("rdma", "tcp"), now).rung == "rdma"


def test_what_is_under_way_goes_first_as_far_as_it_is_shorter() -> None:
    costs = pair()
    alone = costs.expected_s("tcp", 8 * MIB, 0.0)
    costs.begin(1, "tcp", 4 * MIB)
    costs.begin(2, "rdma", 4 * MIB)
    assert costs.expected_s("tcp", 8 * MIB, 0.0) == pytest.approx(alone + 4 * MIB / TCP.rate)
    costs.begin(3, "tcp", 800 * MIB)
    share = 8 * MIB // (SHARE - 1)
    assert costs.expected_s("tcp", 8 * MIB, 0.0) == pytest.approx(alone + (4 * MIB + share) / TCP.rate)
    for number in (1, 2, 3, 3):
        costs.end(number)
    assert costs.expected_s("tcp", 8 * MIB, 0.0) == alone


def test_a_queue_moves_transfers_to_another_rung() -> None:
    costs = pair()
    assert costs.choose(16 * MIB, ("rdma", "tcp"), 0.0).rung == "rdma"
    for number in range(6):
        costs.begin(number, "rdma", 16 * MIB)
    choice = costs.choose(16 * MIB, ("rdma", "tcp"), 0.0)
    assert choice.reason == "tcp: 17 ms expected, rdma 24 ms (96.0 MiB ahead)"


# --- what is chosen, and why


def test_it_says_why() -> None:
    costs = pair()
    choice = costs.choose(16 * MIB, ("rdma", "tcp"), 0.0)
    assert choice == Choice("rdma", choice.expected_s, "rdma: 3.5 ms expected, tcp 17 ms")
    assert choice.expected_s == pytest.approx(RDMA.takes(16 * MIB))
    assert costs.choose(16 * MIB, ("tcp",), 0.0).reason == "tcp: 17 ms expected"
    assert costs.choose(16 * MIB, ("tcp",), 0.0, 0.012).reason == "recompute: 12 ms expected here, tcp 17 ms"
    assert [spoken(s) for s in (3.14e-3, 0.0221, 1.54, 2e-4)] == ["3.1 ms", "22 ms", "1.5 s", "0.2 ms"]
    with pytest.raises(ValueError, match="no rung"):
        costs.choose(MIB, (), 0.0)


def test_a_rung_that_fails_is_left_for_a_while() -> None:
    costs = pair()
    now = feed(costs, "rdma", 1e-4, 5e9, 20)
    costs.failed("rdma", 2.0, now)
    choice = costs.choose(16 * MIB, ("rdma", "tcp"), now)
    assert choice.rung == "tcp"
    assert "for failures" in choice.reason
    assert costs.choose(16 * MIB, ("rdma",), now).rung == "rdma"
    assert costs.choose(16 * MIB, ("rdma", "tcp"), now + 600.0).rung == "rdma"


def test_what_looked_bad_once_does_not_look_bad_for_ever() -> None:
    costs = pair()
    now = feed(costs, "rdma", 1.0, 1e6, 50)
    assert costs.choose(16 * MIB, ("rdma", "tcp"), now).rung == "tcp"
    feed(costs, "tcp", 5e-4, 1e9, 50, now=now)
    assert costs.choose(16 * MIB, ("rdma", "tcp"), now + 600.0).rung == "rdma"


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 1 << 16))
def test_tries_are_few_and_never_expected_to_cost_much(data: st.DataObject, seed: int) -> None:
    """Whatever rungs take and however they fail: the three bounds of the model's head."""
    names = ("rdma", "shm", "tcp")
    chance = random.Random(seed)
    real = {name: (chance.uniform(1e-5, 1e-1), 10 ** chance.uniform(7, 10)) for name in names}
    costs = pair(**{name: prior(name) for name in names})
    here = data.draw(st.sampled_from([None, 0.002, 0.05]))
    now, tries, count, more, least = 0.0, 0, 400, 0.0, 0.0
    for _ in range(count):
        now += chance.uniform(0.01, 3.0)
        size = int(2 ** chance.uniform(16, 26))
        expected = {name: costs.expected_s(name, size, now) for name in names}
        best = min([*expected.values(), *([here] if here else [])])
        choice = costs.choose(size, names, now, here)
        least += best
        more += choice.expected_s - best
        assert more <= least / TRY_EVERY + 1e-9
        if choice.expected_s > best:
            tries += 1
            assert choice.rung != RECOMPUTE
            assert choice.expected_s <= WORST * best
            assert "tried again" in choice.reason
        if choice.rung != RECOMPUTE:
            setup_s, rate = real[choice.rung]
            if chance.random() < 0.02:
                costs.failed(choice.rung, 0.1, now)
            else:
                costs.took(choice.rung, size, setup_s + size / rate, now)
    assert tries <= count / TRY_EVERY


# --- a day in the life


@dataclass
class Rung:
    setup_s: float
    rate: float
    used: int = 0


@dataclass
class Day:
    """One transfer after the other, of sizes from 256 KiB to 64 MiB, each where the model says."""

    costs: Costs
    rungs: dict[str, Rung]
    chance: random.Random = field(default_factory=lambda: random.Random(11))
    now: float = 0.0

    def go(self, count: int) -> float:
        """Time spent, as a multiple of what the fastest rung of each transfer would have taken."""
        spent = least = 0.0
        for rung in self.rungs.values():
            rung.used = 0
        for _ in range(count):
            self.now += self.chance.expovariate(2.0)
            size = int(2 ** self.chance.uniform(18, 26))
            noise = self.chance.uniform(0.8, 1.25)
            real = {name: noise * (rung.setup_s + size / rung.rate) for name, rung in self.rungs.items()}
            chosen = self.costs.choose(size, self.rungs, self.now).rung
            self.costs.took(chosen, size, real[chosen], self.now)
            self.rungs[chosen].used += 1
            spent += real[chosen]
            least += min(real.values())
        return spent / least


def test_a_link_whose_rate_halves_and_comes_back() -> None:
    rdma, tcp = Rung(1e-4, 4e9), Rung(5e-4, 1.2e9)
    day = Day(pair(), {"rdma": rdma, "tcp": tcp})
    assert day.go(300) < 1.1
    assert rdma.used > 280
    rdma.rate /= 2  # still the faster one: nothing changes but what is expected
    assert day.go(50) < 1.1
    assert day.costs.expected_s("rdma", 32 * MIB, day.now) == pytest.approx(1e-4 + 32 * MIB / 2e9, rel=0.2)
    rdma.rate /= 4  # now it is not
    assert day.go(300) < 1.15
    assert tcp.used > 250  # but short ones are still faster by rdma
    rdma.rate *= 8
    assert day.go(600) < 1.6  # it has to be found out
    assert day.go(300) < 1.1
    assert rdma.used > 280


def test_when_all_rungs_are_slower_than_computing_it_the_prompt_is_computed_and_rungs_tried_now_and_then() -> (
    None
):
    costs = pair(tcp=TCP)
    now = feed(costs, "tcp", 1e-3, 1e8, 40)
    said = [costs.choose(16 * MIB, ("tcp",), now + at, 0.1).rung for at in range(2 * TRY_EVERY)]
    assert said.count("tcp") == 2
    assert costs.choose(16 * MIB, ("tcp",), now, 0.01).rung == RECOMPUTE
