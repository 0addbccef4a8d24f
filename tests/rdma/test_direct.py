"""The rung `rdma`: straight into memory that is in use, and never into what has gone to somebody else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from runtimes.transport.channel import ChannelError, Extent, Rung
from runtimes.transport.pair import Channel
from runtimes.transport.verbs.direct import Direct
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Prompt
from runtimes.vllm_pd.pushing import Pushes
from tests.rdma.channels import Pair, decode, ends, prefill
from tests.rdma.machine import Nics, resources
from tests.runtimes.test_transfers import SIZE, Setup
from tests.support import channel_ends
from tests.support.channel_ends import BLOCK, WAIT_S, Ear, extent, until

WINDOW = 4 << 20


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair("rdma")
    yield made
    made.close()


def direct(pair: Pair) -> Direct:
    way = pair.decode._ways["rdma"]
    assert isinstance(way, Direct)
    return way


# --- no copies


def test_there_is_no_ring_where_only_the_direct_rung_is_wanted(pair: Pair) -> None:
    for channel in (pair.decode, pair.prefill):
        with pytest.raises(ChannelError, match="no ring"):
            ends(channel)[0].ring  # noqa: B018
    sent = pair.fill(16)
    pair.prefill.write(1, 0, 40, sent)
    assert pair.at_decode.next() == ("landed", 40, 16, [])
    assert pair.at_decode.memory[40 * BLOCK : 56 * BLOCK] == b"".join(sent)


def test_each_transfer_takes_the_rung_that_it_names(nics: Nics) -> None:
    """One channel with three of them: the rings stay as they are, and TCP carries what is sent by TCP only."""
    listener, accepted = prefill()
    near = decode(listener.addr, ("rdma", "rdma-staged", "tcp"))
    far = accepted.get(timeout=WAIT_S)
    here, there = Ear(), Ear()
    near.start(here, here)
    far.start(there, None)
    assert near.rungs == ("rdma-staged", "tcp")  # before anybody has said where the memory is
    near.expose([extent(here.memory)])
    far.use([extent(there.memory)])
    until(lambda: near.rungs == far.rungs == ("rdma", "rdma-staged", "tcp"))
    there.memory[:] = os.urandom(len(there.memory))
    blocks = [there.memory[at : at + BLOCK] for at in range(0, 16 * BLOCK, BLOCK)]

    def carried(rung: Rung) -> int:
        before = nics.bytes_sent(nics.far)
        far.write(1, 0, 0, blocks, rung)
        assert here.next() == ("landed", 0, 16, [])
        far.finish(1, 16, rung)
        assert here.next() == ("done", 1, 16)
        assert here.memory[: 16 * BLOCK] == there.memory[: 16 * BLOCK]
        here.memory[: 16 * BLOCK] = bytes(16 * BLOCK)
        return nics.bytes_sent(nics.far) - before

    assert carried("rdma") >= 16 * BLOCK
    for channel in (near, far):
        ring = ends(channel)[0].ring.view
        assert ring is not None
        assert not any(ring[: 16 * BLOCK])
    assert carried("rdma-staged") >= 16 * BLOCK
    assert carried("tcp") < BLOCK
    with pytest.raises(ChannelError, match="rung shm: not on this channel"):
        far.write(1, 0, 0, blocks, "shm")
    assert near.lost is None
    for each in (near, far, listener):
        each.close()


# --- memory


def test_memory_is_registered_once_a_device_however_many_channels_use_it(pair: Pair) -> None:
    more = []
    before = resources()["rxe1"]["mr"]
    for _ in range(3):
        channel = decode(pair.listener.addr, ("rdma",))
        channel.start(pair.at_decode, pair.at_decode)
        channel.expose([extent(pair.at_decode.memory)])
        more += [channel, pair.accepted.get(timeout=WAIT_S)]
    assert resources()["rxe1"]["mr"] == before + 3 * 2  # the buffers of two queue pairs each
    for channel in more:
        channel.close()
    until(lambda: resources()["rxe1"]["mr"] == before)
    pair.prefill.write(1, 0, 3, pair.fill(1))
    while pair.at_decode.next() != ("landed", 3, 1, []):
        pass  # the others are lost


def test_memory_that_can_not_be_registered_leaves_the_other_rungs() -> None:
    listener, accepted = prefill()
    near = decode(listener.addr, ("rdma", "rdma-staged"))
    far = accepted.get(timeout=WAIT_S)
    ears = Ear(), Ear()
    near.start(ears[0], ears[0])
    far.start(ears[1], None)
    near.expose([extent(ears[0].memory)])
    far.use([Extent(0x10000, 4096)])  # nothing is mapped there
    until(lambda: near.passed != ())
    for channel in (near, far):
        assert channel.rungs == ("rdma-staged",)
        (why,) = channel.passed
        assert why.startswith("rdma: registering 4096 bytes with rxe2")
    far.write(1, 0, 0, [ears[1].memory[:BLOCK]], "rdma-staged")
    assert ears[0].next() == ("landed", 0, 1, [])
    for each in (near, far, listener):
        each.close()


def test_locked_memory_that_is_used_up_says_so() -> None:
    """As a user without rights: root may lock what it likes."""
    program = (
        "import mmap, os, resource\n"
        "from runtimes.transport.verbs import cards\n"
        "from tests.support.channel_ends import extent\n"
        "memory = memoryview(mmap.mmap(-1, 64 << 20))\n"
        "card = cards.take(cards.find()[0])\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))\n"
        "os.setuid(65534)\n"
        "try:\n    cards.share(card, extent(memory), remote=True)\n"
        "except Exception as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ulimit -l" in done.stdout, done.stderr


def test_a_key_that_has_been_withdrawn_loses_the_channel_with_the_reason(pair: Pair) -> None:
    direct(pair)._lanes[0].mine[0]._memory.close()  # type: ignore[union-attr]
    pair.prefill.write(1, 0, 0, pair.fill(1))
    assert pair.at_prefill.next() == ("lost", "memory")
    assert "not registered" in str(pair.prefill.lost)


def test_blocks_from_and_to_somewhere_else_are_refused_before_they_are_sent(pair: Pair) -> None:
    for blocks, target in (
        ([memoryview(bytearray(BLOCK))], 0),
        ([memoryview(bytes(BLOCK))], 0),
        (pair.fill(2), 127),
    ):
        with pytest.raises(ValueError, match=r"region|in use|beyond"):
            pair.prefill.write(1, 0, target, blocks)
    pair.prefill.write(1, 0, 126, pair.fill(2))
    assert pair.at_decode.next() == ("landed", 126, 2, [])


# --- what is under way


def test_flush_returns_only_when_the_blocks_may_change(pair: Pair, nics: Nics) -> None:
    flushed = threading.Event()

    def flush() -> None:
        pair.prefill.flush(1)
        flushed.set()

    sent = pair.fill(4)
    before = b"".join(sent)
    nics.link_down()
    pair.prefill.write(1, 0, 0, sent)
    thread = threading.Thread(target=flush)
    thread.start()
    assert not flushed.is_set()
    assert pair.at_decode.happened.empty()
    nics.link_up()
    thread.join(WAIT_S)
    assert flushed.is_set()
    for block in sent:
        block[:] = bytes(BLOCK)
    assert pair.at_decode.next() == ("landed", 0, 4, [])
    assert pair.at_decode.memory[: 4 * BLOCK] == before


def test_bytes_under_way_are_bounded_by_what_has_not_arrived(nics: Nics) -> None:
    pair = Pair("rdma", window=8 * BLOCK)
    sent: SimpleQueue[int] = SimpleQueue()

    def push() -> None:
        for number in range(4):
            pair.prefill.write(1, 0, number * 4, pair.fill(4))
            sent.put(number)

    nics.link_down()
    thread = threading.Thread(target=push)
    thread.start()
    assert [sent.get(timeout=WAIT_S) for _ in range(2)] == [0, 1]
    assert pair.prefill.free() == 0
    assert sent.empty()
    nics.link_up()
    assert [sent.get(timeout=WAIT_S) for _ in range(2)] == [2, 3]
    assert [pair.at_decode.next() for _ in range(4)] == [("landed", at, 4, []) for at in (0, 4, 8, 12)]
    thread.join(WAIT_S)
    pair.close()


def test_an_owner_that_is_told_of_the_loss_has_its_memory_to_itself(nics: Nics) -> None:
    """The peer's last WRITE is on its way when the channel is closed here."""
    held: list[int] = []
    before = resources()["rxe1"]["qp"]

    class Told(Ear):
        def lost(self, channel: object, error: ChannelError) -> None:
            held.append(resources()["rxe1"]["qp"])
            super().lost(channel, error)

    pair = Pair("rdma")
    pair.decode._receiver = told = Told()
    nics.lose_packets(100)
    pair.prefill.write(1, 0, 0, pair.fill(4))
    pair.decode.lose(ChannelError("timeout", "given up"))
    assert told.next() == ("lost", "timeout")
    assert held == [before]
    pair.at_decode.memory[:] = pattern = bytes([7]) * len(pair.at_decode.memory)
    nics.lose_none()
    assert pair.at_prefill.next()[0] == "lost"
    assert pair.at_decode.memory == pattern
    pair.close()


# --- with transfers on top


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup("rdma")
    until(lambda: made.channel.rungs == made.far.rungs == ("rdma",))
    yield made
    made.close()


class OverTheWire:
    """Prefill's and decode's halves at its two ends, one layer of memory each."""

    def __init__(self) -> None:
        self.reserved = threading.Event()
        self._memory = [memoryview(channel_ends.memory(40 * SIZE)) for _ in range(2)]
        caches = [KvMemory(), KvMemory()]
        for cache, layer in zip(caches, self._memory, strict=True):
            cache.register_views([layer], 40)
        self.source = os.urandom(SIZE)
        self._memory[1][8 * SIZE : 9 * SIZE] = self.source
        # Time stands still: nobody is given up because this machine is slow.
        self.landings = Landings(caches[0], 30.0, lambda: 0.0)
        self.pushes = Pushes(caches[1], 60.0, lambda: 0.0)
        self.jobs: SimpleQueue[int] = SimpleQueue()
        self.pushes.accept_jobs(lambda key, job: self.jobs.put(key), lambda key: None)
        listener, accepted = prefill()
        near = decode(listener.addr, ("rdma",), window=WINDOW)
        far = accepted.get(timeout=WAIT_S)
        self.channel, self._ends = near, (near, far, listener)
        take = self.pushes.take

        def taken(channel: Channel, job: jobs.Job) -> None:
            take(channel, job)
            if isinstance(job, jobs.Reserve):
                self.reserved.set()

        self.pushes.take = taken  # type: ignore[method-assign]
        self.writes = lambda: far._ways["rdma"].free() < WINDOW
        self.pushes.attach(far)
        self.landings.attach(near)
        until(lambda: near.rungs == far.rungs == ("rdma",))

    def open(self) -> tuple[int, int]:
        number = self.landings.open(self.channel, Prompt("r", [1], lambda outcome: None, lambda job: None))
        return number, self.jobs.get(timeout=WAIT_S)

    def at(self, block: int) -> memoryview:
        return self._memory[0][block * SIZE : (block + 1) * SIZE]

    def close(self) -> None:
        for each in self._ends:
            each.close()


def test_blocks_of_a_cancelled_transfer_are_held_until_prefill_has_stopped(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, flushing = threading.Event(), threading.Event()
    flush = setup.far.flush

    def late(transfer: int, rung: Rung) -> None:
        flushing.set()
        gate.wait(WAIT_S)
        flush(transfer, rung)

    monkeypatch.setattr(setup.far, "flush", late)
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)
    setup.pushes.computed(key, "engine-p", [8, 9], 1, False)
    until(lambda: setup.target[2][SIZE : 2 * SIZE] == setup.source[2][8 * SIZE : 9 * SIZE])
    setup.landings.cancel(number, "the client has gone")
    assert flushing.wait(WAIT_S)
    assert setup.landings.results() == (set(), set())
    assert setup.pushes.results({"engine-p"}) == set()  # the device may still read them, too
    assert setup.outcomes.empty()
    gate.set()
    assert setup.outcome().reason == "the client has gone"
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})
    assert setup.pushes.results({"engine-p"}) == {"engine-p"}
    for layer in setup.target:
        layer[SIZE : 3 * SIZE] = bytes(2 * SIZE)  # they belong to somebody else
    setup.pushes.computed(key, "engine-p", [8, 9], 2, True)
    again, key = setup.open()
    setup.landings.reserve(again, "engine-d2", 0, [5], 20)
    setup.pushes.computed(key, "engine-p2", [9], 1, True)
    assert setup.outcome().reason == ""
    assert not any(any(layer[SIZE : 3 * SIZE]) for layer in setup.target)


def test_a_write_that_arrives_after_the_cancel_finds_its_blocks_still_held(
    nics: Nics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device tries again and again while the network is away, and nothing can call its bytes back."""
    monkeypatch.setattr("runtimes.transport.verbs.native._TIMEOUT", 18)  # for seven seconds
    wire = OverTheWire()
    number, key = wire.open()
    wire.landings.reserve(number, "engine-d", 0, [1], 20)
    until(lambda: wire.reserved.is_set())
    nics.lose_packets(100)
    wire.pushes.computed(key, "engine-p", [8], 1, True)
    until(wire.writes)
    wire.landings.cancel(number, "the client has gone")
    assert wire.landings.results() == (set(), set())
    assert not any(wire.at(1))
    nics.lose_none()
    until(lambda: wire.landings.results() == ({"engine-d"}, {"engine-d"}))
    assert wire.at(1) == wire.source  # late, and nobody else's yet
    wire.close()


def test_a_peer_that_does_not_say_that_it_has_stopped_loses_its_channel(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(setup.far, "flush", lambda transfer, rung: gate.wait(WAIT_S))
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)
    setup.pushes.computed(key, "engine-p", [8, 9], 1, False)
    until(lambda: setup.target[2][SIZE : 2 * SIZE] == setup.source[2][8 * SIZE : 9 * SIZE])
    setup.landings.cancel(number, "the client has gone")
    assert setup.landings.results() == (set(), set())
    setup.clock.now = 6.0
    _, failed = setup.landings.results()
    assert setup.outcome().reason == "the client has gone"
    assert failed | setup.landings.results()[1] == {"engine-d"}
    assert setup.channel.lost is not None
    gate.set()


def test_a_rung_that_the_channel_has_not_is_unavailable(setup: Setup) -> None:
    setup.landings.open(setup.channel, Prompt("r", [1], setup.outcomes.put, setup.told.put))
    setup.jobs.get(timeout=WAIT_S)
    setup.far._ways["rdma"].why = "as if it had failed"
    setup.landings.open(setup.channel, Prompt("r", [1], setup.outcomes.put, setup.told.put))
    assert setup.outcome()[:2] == ("rung-unavailable", "rdma")
