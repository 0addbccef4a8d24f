"""The receiving half of transfers against a peer that does what it should not, without a channel."""

from __future__ import annotations

from typing import Any, cast

import pytest

from runtimes.transport.channel import RUNG_NAMES, WRITE, ChannelError, Frame, Rung
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import STOP_S, Landings, Outcome, Prompt

SIZE = 64


class Peer:
    """A channel of which only the words that are said on it are kept."""

    def __init__(self, rung: Rung) -> None:
        self.rung = rung
        self.said: list[jobs.Job] = []
        self.lost: list[ChannelError] = []

    def direct(self, rung: str = "") -> bool:
        return self.rung == "rdma"

    def send(self, body: bytes) -> None:
        self.said.append(jobs.decode(body))

    def lose(self, error: ChannelError) -> None:
        self.lost.append(error)


class Setup:
    def __init__(self, rung: Rung) -> None:
        self.now = 0.0
        memory = KvMemory()
        memory.register_views([memoryview(bytearray(8 * SIZE))], 8)
        self.landings = Landings(memory, 30.0, lambda: self.now)
        self.peer = Peer(rung)
        self.channel = cast(Channel, self.peer)
        self.outcomes: list[Outcome] = []
        self.door = self.landings.door(self.channel)
        number = self.landings.open(
            self.channel, Prompt("request", [1, 2], self.outcomes.append, lambda job: None, rung)
        )
        self.landings.reserve(number, "engine-d", 0, [1, 2], 32)
        self.number = number

    def write(self, target: int) -> Any:
        frame = Frame(WRITE, RUNG_NAMES.index(self.peer.rung), 0, self.number, 1, target, SIZE)
        window = self.door.window(frame)
        if window is not None:
            self.door.landed(frame, [])
        return window


def test_what_a_peer_writes_again_over_checked_blocks_is_not_used() -> None:
    setup = Setup("rdma")
    assert setup.write(1) is not None
    assert setup.write(1) is None  # nobody has compared what lies there now with anything
    assert setup.write(2) is None
    assert jobs.Cancel(setup.number, "unexpected") in setup.peer.said
    setup.door.done(setup.number, 2)
    assert setup.landings.results() == (set(), set())  # it may be writing still
    setup.door.take(jobs.Stopped(setup.number))
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})
    assert [outcome.reason for outcome in setup.outcomes] == ["unexpected"]


def test_what_a_reader_throws_away_changes_nothing() -> None:
    setup = Setup("tcp")
    assert setup.write(1) is not None
    assert setup.write(1) is None
    assert setup.write(2) is not None
    setup.door.done(setup.number, 2)
    assert setup.landings.results() == ({"engine-d"}, set())


@pytest.mark.parametrize("rung", ["tcp", "rdma"])
def test_a_write_whose_rest_never_comes_does_not_hold_its_blocks_for_ever(rung: Rung) -> None:
    setup = Setup(rung)
    frame = Frame(WRITE, RUNG_NAMES.index(rung), 0, setup.number, 1, 1, SIZE)
    assert setup.door.window(frame) is not None  # and its reader waits
    setup.landings.cancel(setup.number, "the client has gone")
    setup.door.take(jobs.Stopped(setup.number))
    setup.now = STOP_S
    assert setup.landings.results() == (set(), set())
    assert not setup.peer.lost
    setup.now = STOP_S + 0.1
    assert setup.landings.results() == (set(), set())  # not before the reader has left
    assert setup.peer.lost
    setup.door.lost(setup.channel, setup.peer.lost[0])
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})


def test_pages_that_a_peer_writes_again_are_not_used_either() -> None:
    setup = Setup("rdma")
    frame = Frame(WRITE, RUNG_NAMES.index("rdma"), 0, setup.number, 2, 1, 2 * SIZE)
    assert setup.door.expects(frame, [1, 2])
    setup.door.arrived(frame, [1, 2], [])
    assert not setup.door.expects(frame, [1])
    setup.door.done(setup.number, 2)
    setup.door.take(jobs.Stopped(setup.number))
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})
