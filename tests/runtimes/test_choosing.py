"""Decode's choice of rungs: fed by both sides' words of a transfer, in either order."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.transport.channel import Port, Rung
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.choosing import Choosing, link_rate
from runtimes.vllm_pd.landing import Outcome

TOKEN = 1000
TOKENS = 10_000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Channel:
    def __init__(self, *rungs: Rung) -> None:
        self.rungs: tuple[Rung, ...] = rungs

    def ports(self, rung: Rung) -> tuple[Port, ...]:
        return (Port("mlx5_0:1", "", 4096),) if rung.startswith("rdma") else ()


def whole(rung: str, ms: float) -> Outcome:
    return Outcome("", rung, TOKENS * TOKEN, 100, TOKENS, ms)


def trips(
    choosing: Choosing, clock: Clock, rung: Rung, ms: float, sent: jobs.Sent, first: str = "sent"
) -> None:
    assert choosing.choose("p", Channel(rung), TOKENS, None) is not None
    for _ in range(16):
        clock.now += 1.0
        trip = choosing.begin("p", rung, TOKENS)
        if first == "sent":
            trip.sent(sent)
        trip.closed(whole(rung, ms))
        if first != "sent":
            trip.sent(sent)


@pytest.mark.parametrize("first", ["sent", "closed"])
def test_what_transfers_took_decides_without_the_time_that_prefill_computed(first: str) -> None:
    clock = Clock()
    choosing, channel = Choosing(clock), Channel("shm", "tcp")
    # 900 ms from the first frame to the last, of which nothing could be sent for 898
    trips(choosing, clock, "tcp", 900.0, jobs.Sent(0, 0.9, 0.0, 0.001, 0.898, 0), first)
    trips(choosing, clock, "shm", 9.0, jobs.Sent(0, 0.0, 0.0, 0.001, 0.0, 0), first)
    choice = choosing.choose("p", channel, TOKENS, None)
    assert choice is not None
    assert choice.reason == "tcp: 3 ms expected, shm 9.8 ms"


def test_where_the_sender_knows_what_the_link_took_that_counts() -> None:
    clock = Clock()
    choosing = Choosing(clock)
    trips(choosing, clock, "rdma", 0.1, jobs.Sent(0, 0.0, 0.020, 0.0, 0.0, 0))
    choice = choosing.choose("p", Channel("rdma", "tcp"), TOKENS, None)
    assert choice is not None
    assert choice.reason == "tcp: 10 ms expected, rdma 20 ms"


def test_the_bytes_of_others_are_no_fault_of_the_link() -> None:
    clock = Clock()
    choosing = Choosing(clock)
    trips(choosing, clock, "tcp", 40.0, jobs.Sent(0, 0.0, 0.0, 0.0, 0.0, 3 * TOKENS * TOKEN))
    choice = choosing.choose("p", Channel("tcp"), TOKENS, None)
    assert choice is not None
    assert choice.expected_s == pytest.approx(0.010, rel=0.2)


def test_what_is_under_way_counts_until_it_has_ended() -> None:
    clock = Clock()
    choosing, channel = Choosing(clock), Channel("shm", "tcp")
    trips(choosing, clock, "shm", 10.0, jobs.Sent(0, 0.0))
    trips(choosing, clock, "tcp", 15.0, jobs.Sent(0, 0.0))
    trip = choosing.begin("p", "shm", TOKENS)
    queued = choosing.choose("p", channel, TOKENS, None)
    assert queued is not None
    assert queued.rung == "tcp"
    assert "ahead" in queued.reason
    trip.closed(Outcome("cancelled", "shm", 0, 0, 0, 0.0))
    after = choosing.choose("p", channel, TOKENS, None)
    assert after is not None
    assert after.rung == "shm"


@pytest.mark.parametrize(
    ("reason", "blamed"),
    [
        ("channel-timeout", True),
        ("checksum", True),
        ("timeout", True),
        ("preempted", False),
        ("step-failed", False),
        ("short", False),
        ("channel-closed", False),
    ],
)
def test_a_failure_is_a_cost_if_the_rung_is_to_blame(reason: str, blamed: bool) -> None:
    clock = Clock()
    choosing, channel = Choosing(clock), Channel("shm", "tcp")
    before = choosing.choose("p", channel, 100, None)
    assert before is not None
    trip = choosing.begin("p", "shm", 100)
    trip.closed(Outcome(reason, "shm", 0, 0, 0, 0.0))
    choice = choosing.choose("p", channel, 100, None)
    other = choosing.choose("another peer", channel, 100, None)
    assert choice is not None
    assert other is not None
    assert (choice.rung, other.rung) == ("tcp" if blamed else "shm", "shm")


def test_a_device_that_fails_is_the_same_for_all_rungs_over_it() -> None:
    clock = Clock()
    choosing, channel = Choosing(clock), Channel("rdma", "rdma-staged", "tcp")
    before = choosing.choose("p", channel, 100, None)
    assert before is not None
    choosing.begin("p", "rdma", 100).closed(Outcome("channel-unreachable", "rdma", 0, 0, 0, 0.0))
    after = choosing.choose("p", channel, 100, None)
    verbs = choosing.choose("p", Channel("rdma", "rdma-staged"), 100, None)
    assert after is not None
    assert verbs is not None
    assert (before.rung, after.rung, verbs.rung) == ("rdma", "tcp", "rdma")


def test_it_may_be_faster_here() -> None:
    choosing = Choosing(Clock())
    choice = choosing.choose("p", Channel("tcp"), TOKENS, 0.001)
    assert choice is not None
    assert choice.reason.startswith("recompute: 1 ms expected here, tcp")
    assert choosing.choose("p", Channel(), TOKENS, 0.001) is None


def test_the_rate_of_a_link(tmp_path: Path) -> None:
    for name, hardware in (("mlx5_0", True), ("rxe0", False)):
        port = tmp_path / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "rate").write_text("100 Gb/sec (4X EDR)\n" if hardware else "2.5 Gb/sec (1X SDR)\n")
        if hardware:
            (tmp_path / name / "device").mkdir()
    assert link_rate("mlx5_0:1", tmp_path) == 12.5e9
    assert (
        link_rate("mlx5_0:2", tmp_path) == link_rate("rxe0:1", tmp_path) == link_rate("gone", tmp_path) == 0
    )
    choosing = Choosing(Clock(), tmp_path)
    fast = choosing.choose("p", Channel("rdma", "shm"), TOKENS * 100, None)
    assert fast is not None
    assert fast.rung == "rdma"  # faster than memory, while nobody knows better
