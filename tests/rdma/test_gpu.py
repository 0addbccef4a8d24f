"""Blocks of a GPU's cache over RDMA: from page to page, and by rings. The GPU is a stand-in in host memory, which the
device registers as plain memory; the verbs are real."""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest
import torch

from runtimes.transport.channel import PAGE, PAGES, RUNG_NAMES, ChannelError, Extent, Frame, Pages, Rung
from runtimes.transport.cuda import mover
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.pair import Channel
from runtimes.transport.verbs import gpu
from runtimes.transport.verbs.memory import Region, register_at
from runtimes.transport.verbs.work import Piece
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Prompt
from runtimes.vllm_pd.pushing import Pushes
from tests.rdma.channels import decode, prefill
from tests.rdma.machine import Nics, resources
from tests.support.channel_ends import WAIT_S, until
from tests.transport.host_gpu import HostGpu, paged
from tests.transport.test_gpu_channel import BLOCKS, LAYERS, Ear, cache, shuffled
from tests.transport.verbs.test_pages import LAYOUTS, block_of, laid_out

if TYPE_CHECKING:
    from runtimes.transport.verbs.native import Card


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver would let the device reach the GPU's memory."""

    def register(card: Card, extent: Extent, *, remote: bool) -> Region:
        return register_at(card, extent.address, extent.size, extent.owner, remote=remote)

    monkeypatch.setattr(gpu, "register", register)


class Pair:
    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, layers: Sequence[Sequence[torch.Tensor]] | None = None
    ) -> None:
        monkeypatch.setattr(mover, "PIECE", 3 * 2048)
        self.source, self.target = layers or (cache(1), cache(2))
        self.a, self.b = (paged(layers, monkeypatch, BLOCKS) for layers in (self.source, self.target))
        self.listener, accepted = prefill()
        self.decode = decode(self.listener.addr, ("rdma", "rdma-staged"), window=1 << 16)
        self.accepted = accepted
        self.prefill = accepted.get(timeout=WAIT_S)
        self.at_decode, self.at_prefill = Ear(self.b), Ear(self.a)
        self.decode.start(self.at_decode, self.at_decode)
        self.prefill.start(self.at_prefill, None)
        self.decode.expose([Extent(0, 0, True, self.b)])
        self.prefill.use([Extent(0, 0, True, self.a)])

    def ready(self) -> Pair:
        until(lambda: self.decode.rungs == self.prefill.rungs == ("rdma", "rdma-staged"))
        return self

    def write(self, transfer: int, pairs: list[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.prefill.write(transfer, 0, target, [Pages(source, 1, self.a.block_bytes)])

    def same(self, pairs: list[tuple[int, int]]) -> bool:
        return all(
            torch.equal(block_of(x, s, BLOCKS), block_of(y, t, BLOCKS))
            for s, t in pairs
            for x, y in zip(self.source, self.target, strict=True)
        )

    def close(self) -> None:
        self.decode.close()
        self.prefill.close()
        self.listener.close()


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    made = Pair(monkeypatch)
    yield made
    made.close()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch, registered: None) -> Iterator[Pair]:
    made = Pair(monkeypatch).ready()
    yield made
    made.close()


# --- from page to page


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_every_layout_go_from_page_to_page(
    layout: str, monkeypatch: pytest.MonkeyPatch, registered: None, nics: Nics
) -> None:
    pair = Pair(monkeypatch, [laid_out(layout, seed, BLOCKS) for seed in (1, 2)]).ready()
    before = nics.bytes_sent(nics.far)
    for transfer in range(4):
        pairs = shuffled(transfer, BLOCKS - transfer)
        untouched = set(range(BLOCKS)) - {target for _, target in pairs}
        others = {b: [block_of(y, b, BLOCKS).clone() for y in pair.target] for b in untouched}
        pair.write(transfer, pairs)
        pair.prefill.finish(transfer, len(pairs), "rdma")
        assert pair.at_decode.until_done() == ([target for _, target in pairs], [])
        assert pair.same(pairs)
        for b, kept in others.items():
            assert all(
                torch.equal(old, block_of(y, b, BLOCKS)) for old, y in zip(kept, pair.target, strict=True)
            )
    assert nics.bytes_sent(nics.far) - before >= 4 * (BLOCKS - 3) * pair.a.block_bytes
    pair.close()


def test_rows_that_lie_together_are_one_request(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[Sequence[Piece]] = []
    rail = pair.prefill._ways["rdma"].streams[0]
    write = rail.write  # type: ignore[attr-defined]

    def counting(frame: Frame, places: bytes, pieces: Sequence[Piece]) -> int:
        posted.append(pieces)
        return int(write(frame, places, pieces))

    monkeypatch.setattr(rail, "write", counting)
    pair.prefill.write(1, 0, 20, [Pages(10, 3, pair.a.block_bytes)])
    pair.prefill.finish(1, 3, "rdma")
    assert pair.at_decode.until_done() == ([20, 21, 22], [])
    assert [len(pieces) for pieces in posted] == [LAYERS]  # three blocks of a layer each
    assert pair.same([(10, 20), (11, 21), (12, 22)])


def test_damage_is_found_where_the_blocks_lie(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = shuffled(1, 9)
    device, seen = pair.b.device, HostGpu.see_writes
    assert isinstance(device, HostGpu)

    def damaged(self: HostGpu) -> None:
        seen(self)
        if self.seen == 2:  # the second piece
            block = pair.b.addresses[1] + pairs[4][1] * pair.b.step
            ctypes.c_ubyte.from_address(block + 77).value ^= 1

    monkeypatch.setattr(HostGpu, "see_writes", damaged)
    pair.write(1, pairs)
    pair.prefill.finish(1, 9, "rdma")
    assert pair.at_decode.until_done() == ([target for _, target in pairs], [pairs[4][1]])
    assert device.seen == 3, "before each piece is summed, what the card wrote is asked for"
    pair.write(2, pairs)
    pair.prefill.finish(2, 9, "rdma")
    assert pair.at_decode.until_done() == ([target for _, target in pairs], [])
    assert pair.same(pairs)


def test_what_is_not_wanted_any_more_is_neither_summed_nor_told(pair: Pair) -> None:
    device = pair.b.device
    assert isinstance(device, HostGpu)
    pair.at_decode.wanted = lambda target: False
    pair.write(1, shuffled(1))
    pair.prefill.finish(1, BLOCKS, "rdma")
    assert pair.at_decode.until_done() == ([], [])
    assert device.seen == 0


def test_a_block_that_the_peer_has_not_is_never_sent(pair: Pair) -> None:
    pair.write(1, [(0, BLOCKS)])
    with pytest.raises(ChannelError, match=f"block {BLOCKS} is wanted, the peer's cache has {BLOCKS}"):
        pair.prefill.flush(1, "rdma")


@pytest.mark.parametrize(
    ("blocks", "size", "body"),
    [
        (1, 2048, PAGE.pack(BLOCKS, 0)),  # no such block
        (2, 4096, PAGE.pack(3, 0) * 2),  # one of them twice
        (1, 2049, PAGE.pack(3, 0)),
        (0, 0, b""),
    ],
)
def test_frames_that_make_no_sense_end_the_channel(pair: Pair, blocks: int, size: int, body: bytes) -> None:
    way = pair.prefill._ways["rdma"]
    way.streams[0].tell(Frame(PAGES, RUNG_NAMES.index("rdma"), 0, 1, blocks, 3, size), body)
    assert pair.at_decode.happened.get(timeout=WAIT_S) == ("lost", "protocol")


def test_each_transfer_takes_the_rung_that_it_names(pair: Pair) -> None:
    rungs: tuple[Rung, ...] = ("rdma", "rdma-staged")
    for transfer in range(4):
        rung, pairs = rungs[transfer % 2], shuffled(transfer, 12)
        for source, target in pairs:
            pair.prefill.write(transfer, 0, target, [Pages(source, 1, pair.a.block_bytes)], rung)
        pair.prefill.finish(transfer, 12, rung)
        assert pair.at_decode.until_done() == ([target for _, target in pairs], [])
        assert pair.same(pairs)


def test_the_cache_is_the_owners_alone_when_it_is_told_of_the_loss(pair: Pair, nics: Nics) -> None:
    """The last WRITE is on its way when the channel is given up."""
    nics.lose_packets(100)
    pair.prefill.write(1, 0, 0, [Pages(5, 4, pair.a.block_bytes)])
    pair.prefill.push("rdma")
    pair.decode.lose(ChannelError("timeout", "given up"))
    assert pair.at_decode.happened.get(timeout=WAIT_S) == ("lost", "timeout")
    for layer in pair.target:
        layer.fill_(7)
    nics.lose_none()
    while pair.at_prefill.happened.get(timeout=WAIT_S)[0] != "lost":
        pass
    assert all(bool((layer == 7).all()) for layer in pair.target)


def test_caches_that_differ_say_so_and_leave_the_other_rung(
    monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    pair = Pair(monkeypatch, [cache(1), [*cache(2), *cache(3)]])
    until(lambda: all("rdma: a block has" in "".join(c.passed) for c in (pair.decode, pair.prefill)))
    assert "2 parts of 1024 bytes here, 4 of 1024 there" in "".join(pair.decode.passed)
    assert pair.prefill.rungs == ("rdma-staged",)
    pair.close()


def test_a_gpu_that_cannot_be_told_to_look_takes_no_writes(
    monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    monkeypatch.setattr(HostGpu, "flushable", False)
    pair = Pair(monkeypatch)
    assert any("rdma: the GPU neither sees" in why for why in pair.decode.passed)
    assert pair.prefill.rungs == ("rdma-staged",)
    pair.close()


# --- with transfers on top


def _still() -> float:
    """A clock: a slow machine must not look like a peer that never stops."""
    return 1.0


class OverTheWire:
    """Prefill's and decode's halves, each with a paged cache, at the wire's ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.target = cache(1), cache(2)
        caches = [KvMemory(), KvMemory()]
        monkeypatch.setattr(
            KvMemory, "mark", lambda self, chosen: self._paged.mark(chosen)
        )  # CUDA has no stream here
        for memory, layers in zip(caches, (self.target, self.source), strict=True):
            memory.register_paged(paged(layers, monkeypatch, BLOCKS))
        self.reserved = threading.Event()
        self.landings, self.pushes = Landings(caches[0], 30.0, _still), Pushes(caches[1], 60.0)
        self.jobs: SimpleQueue[int] = SimpleQueue()
        self.pushes.accept_jobs(lambda key, job: self.jobs.put(key), lambda key: None)
        listener, accepted = prefill()
        self.channel = near = decode(listener.addr, ("rdma",), window=1 << 16)
        far = accepted.get(timeout=WAIT_S)
        self._ends = near, far, listener
        take = self.pushes.take

        def taken(channel: Channel, job: jobs.Job) -> None:
            take(channel, job)
            if isinstance(job, jobs.Reserve):
                self.reserved.set()

        self.pushes.take = taken  # type: ignore[method-assign]
        self.under_way = lambda: far._ways["rdma"].free() < 1 << 16
        self.pushes.attach(far)
        self.landings.attach(near)
        until(lambda: near.rungs == far.rungs == ("rdma",))
        self.reasons: SimpleQueue[str] = SimpleQueue()

    def open(self) -> tuple[int, int]:
        prompt = Prompt("r", [1], lambda outcome: self.reasons.put(outcome.reason), lambda job: None)
        number = self.landings.open(self.channel, prompt)
        return number, self.jobs.get(timeout=WAIT_S)

    def same(self, source: int, target: int) -> bool:
        return all(torch.equal(x[source], y[target]) for x, y in zip(self.source, self.target, strict=True))

    def close(self) -> None:
        for each in self._ends:
            each.close()


def test_a_whole_transfer_and_one_that_is_damaged(monkeypatch: pytest.MonkeyPatch, registered: None) -> None:
    wire = OverTheWire(monkeypatch)
    seen = HostGpu.see_writes

    def damaged(self: HostGpu) -> None:
        seen(self)
        wire.target[0][30].view(-1)[3] ^= 1

    chosen = random.Random(3).sample(range(BLOCKS), 20)
    number, key = wire.open()
    wire.landings.reserve(number, "engine-d", 0, list(range(20)), 320)
    wire.pushes.computed(key, "engine-p", chosen, 7, False)
    wire.pushes.computed(key, "engine-p", chosen, 20, True)
    assert wire.reasons.get(timeout=WAIT_S) == ""
    assert all(wire.same(source, target) for target, source in enumerate(chosen))
    monkeypatch.setattr(HostGpu, "see_writes", damaged)
    number, key = wire.open()
    wire.landings.reserve(number, "engine-e", 0, [30], 16)
    wire.pushes.computed(key, "engine-q", [chosen[0]], 1, True)
    assert wire.reasons.get(timeout=WAIT_S) == "checksum"
    until(lambda: "engine-e" in wire.landings.results()[1])
    wire.close()


def test_a_write_that_arrives_after_the_cancel_finds_its_pages_still_held(
    nics: Nics, monkeypatch: pytest.MonkeyPatch, registered: None
) -> None:
    """The device tries again and again while the network is away, and nothing can call its bytes back."""
    monkeypatch.setattr("runtimes.transport.verbs.native._TIMEOUT", 18)  # for seven seconds
    wire = OverTheWire(monkeypatch)
    number, key = wire.open()
    wire.landings.reserve(number, "engine-d", 0, [1], 16)
    until(wire.reserved.is_set)
    nics.lose_packets(100)
    wire.pushes.computed(key, "engine-p", [8], 1, True)
    until(wire.under_way)
    wire.landings.cancel(number, "the client has gone")
    assert wire.landings.results() == (set(), set())
    assert wire.pushes.results({"engine-p"}) == set()  # the device may still read them, too
    assert not wire.same(8, 1)
    nics.lose_none()
    until(lambda: wire.landings.results() == ({"engine-d"}, {"engine-d"}))
    assert wire.channel.lost is None
    assert wire.same(8, 1)  # late, and nobody else's yet
    wire.close()


# --- what is registered


def test_a_cache_is_registered_once_and_given_back(monkeypatch: pytest.MonkeyPatch, registered: None) -> None:
    before = {device: found["mr"] for device, found in resources().items()}
    pair = Pair(monkeypatch).ready()
    held = resources()["rxe1"]["mr"] - before["rxe1"]
    again = decode(pair.listener.addr, ("rdma",))
    again.start(pair.at_decode, pair.at_decode)
    again.expose([Extent(0, 0, True, pair.b)])
    assert resources()["rxe1"]["mr"] - before["rxe1"] == held + 2  # the buffers of two queue pairs
    again.close()
    pair.accepted.get(timeout=WAIT_S).close()
    pair.close()
    until(lambda: {device: found["mr"] for device, found in resources().items()} == before)


def test_memory_that_no_driver_lets_the_device_reach_is_passed_over_with_both_reasons(staged: Pair) -> None:
    assert staged.decode.rungs == staged.prefill.rungs == ("rdma-staged",)
    (why,) = staged.decode.passed
    assert why.startswith("rdma: GPU memory: no dma-buf: NVIDIA's driver is not here")
    assert "nvidia_peermem is not loaded" in why


# --- by rings


def test_scattered_blocks_cross_the_wire_in_pieces(staged: Pair, nics: Nics) -> None:
    before = nics.bytes_sent(nics.far)
    for transfer in range(6):
        pairs = shuffled(transfer)
        staged.write(transfer, pairs)
        staged.prefill.finish(transfer, BLOCKS)
        assert staged.at_decode.until_done() == ([target for _, target in pairs], [])
        assert staged.same(pairs)
    assert nics.bytes_sent(nics.far) - before >= 6 * BLOCKS * staged.a.block_bytes


def test_a_ring_that_was_page_locked_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    pair.write(1, [(2, 1)])
    pair.prefill.finish(1, 1)
    assert pair.at_decode.until_done() == ([1], [])
    pair.close()
    for blocks in (pair.a, pair.b):
        assert isinstance(blocks, PagedBlocks)
        assert isinstance(blocks.device, HostGpu)
        assert not blocks.device.pinned
