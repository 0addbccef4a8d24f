"""The rung nixl for real, over whatever UCX finds here. Run by ../test_nixl.py in a process of its own."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator

import pytest

from runtimes.transport.channel import ChannelError, Extent
from tests.runtimes import test_transfers
from tests.runtimes.test_transfers import Setup
from tests.support.channel_ends import BLOCK, WAIT_S, Ear, extent, until
from tests.transport.nixl.channels import Pair, Sender, Told, decode, prefill

# Prefill's and decode's halves against each other: the tests of tests/runtimes on this rung.
globals().update(
    {
        name: test
        for name, test in vars(test_transfers).items()
        if name.startswith("test_") and "setup" in getattr(test, "__annotations__", {})
    }
)


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup("nixl")
    until(lambda: made.channel.rungs == made.far.rungs == ("nixl",))
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_the_same_tests_are_here() -> None:
    assert sum(name.startswith("test_") for name in globals()) > 15


def test_blocks_land_where_they_belong_whole_and_before_the_end_of_their_transfer(pair: Pair) -> None:
    for turn in range(30):
        sent = pair.fill(turn % 4 * 12, 11)
        pair.prefill.write(turn, 0, turn * 7 % 50, sent)
        pair.prefill.finish(turn, 11)
        assert pair.at_decode.next() == ("landed", turn * 7 % 50, 11, [])
        assert pair.at_decode.next() == ("done", turn, 11)
        target = turn * 7 % 50 * BLOCK
        assert pair.at_decode.memory[target : target + 11 * BLOCK] == b"".join(sent)
    pair.prefill.flush(29)
    assert pair.prefill.free() == 4 << 20


def test_scattered_blocks_in_one_write_and_many_writes_under_way() -> None:
    pair = Pair(window=16 * BLOCK)
    blocks = pair.fill(0, 60)
    scattered = [blocks[number * 7 % 60] for number in range(60)]
    for at in range(0, 60, 6):
        pair.prefill.write(
            1, 0, at, scattered[at : at + 6]
        )  # waits for room: sixteen blocks may be under way
    pair.prefill.finish(1, 60)
    assert [pair.at_decode.next() for _ in range(11)][-1] == ("done", 1, 60)
    assert pair.at_decode.memory[: 60 * BLOCK] == b"".join(scattered)
    pair.close()


def test_a_byte_that_changes_on_the_way_is_caught(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, right = pair.fill(0, 3), zlib.crc32
    flipped: list[int] = []

    class Crc:
        @staticmethod
        def crc32(data: memoryview) -> int:
            value = right(data)
            if not flipped:
                flipped.append(value)
                sent[0][100] ^= 1  # after its checksum was made, before its bytes are sent
            return value

    monkeypatch.setattr("runtimes.transport.pair.zlib", Crc)
    pair.prefill.write(1, 0, 10, sent)
    assert pair.at_decode.next() == ("landed", 10, 3, [10])


def test_what_is_wrong_is_refused_before_it_is_written(pair: Pair) -> None:
    blocks = pair.fill(0, 4)
    for layer, target, count, says in (
        (1, 0, 4, "no memory for layer 1"),
        (0, 126, 4, "block 129 lies beyond"),
        (0, 0, 33, "at most"),
    ):
        with pytest.raises(ValueError, match=says):
            pair.prefill.write(1, layer, target, (blocks * 9)[:count])
    pair.prefill.write(1, 0, 60, blocks)
    assert pair.at_decode.next() == ("landed", 60, 4, [])


def test_nothing_runs_while_nothing_is_under_way(pair: Pair) -> None:
    pair.prefill.write(1, 0, 0, pair.fill(0, 8))
    pair.prefill.flush(1)
    pair.at_decode.next()
    way = pair.decode._ways["nixl"]
    until(lambda: getattr(way, "_coming") == 0)  # noqa: B009
    looks = []
    agent = getattr(way, "_agent")  # noqa: B009
    agent.progress = lambda: looks.append(1)
    threading.Event().wait(0.05)
    assert not looks


def test_layers_that_differ_in_number_and_memory_of_a_gpu_are_passed_over_with_the_reason() -> None:
    for exposed, says in (
        (lambda memory: [extent(memory), extent(memory)], "nixl: layers: 1 here, 2 there"),
        (lambda memory: [Extent(1 << 40, 4096, gpu=True)], "nixl: at the receiver: the KV memory is a GPU's"),
    ):
        listener, accepted = prefill()
        near = decode(listener.addr, ("nixl", "tcp"))
        far = accepted.get(timeout=WAIT_S)
        ears = Ear(), Ear()
        near.start(ears[0], ears[0])
        far.start(ears[1], None)
        far.use([extent(ears[1].memory)])
        near.expose(exposed(ears[0].memory))  # type: ignore[no-untyped-call]
        until(lambda far=far, says=says: says in far.passed)  # type: ignore[misc]
        assert far.rungs == near.rungs == ("tcp",)
        for channel in (near, far):
            channel.close()
        listener.close()


def test_after_the_end_of_a_channel_nobody_writes_here() -> None:
    """Quarantine: as soon as the owner is told that the channel is lost its memory is its own."""
    for _ in range(3):
        sender = Sender()
        near = decode(sender.addr)
        ear = Told(near)
        near.start(ear, ear)
        near.expose([extent(ear.memory)])
        for _ in range(20):
            assert ear.next()[0] == "landed"
        near.close()
        while ear.next() != ("lost", "closed"):
            pass
        ear.memory[:] = bytes(len(ear.memory))
        sender.process.wait(WAIT_S)  # it has found out
        time.sleep(0)
        assert not any(ear.memory)
        sender.close()


def test_a_sender_that_dies_in_the_middle_of_a_write_loses_the_channel_and_no_block() -> None:
    for _ in range(3):
        sender = Sender()
        near = decode(sender.addr)
        ear = Told(near)
        near.start(ear, ear)
        near.expose([extent(ear.memory)])
        for _ in range(10):
            assert ear.next()[0] == "landed"
        sender.close()
        while (news := ear.next())[0] != "lost":
            assert news[3] == [], "what is told has arrived"
        assert news == ("lost", "closed")
        with pytest.raises(ChannelError):
            near.send(b"anybody?")
        near.close()
