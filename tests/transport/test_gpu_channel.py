"""Blocks of a GPU's cache over real channels, on a stand-in for a GPU: every rung, credit, damage, cancel, loss."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

import pytest
import torch

from runtimes.transport.channel import RUNG_NAMES, WRITE, ChannelError, Extent, Frame, Pages, Rung
from runtimes.transport.cuda import ipc, mover
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.driver import CudaError, present
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from tests.transport.host_gpu import HostGpu, paged

KEY = b"k" * 32
BLOCKS, LAYERS = 48, 2
WAIT_S = 60.0
RUNGS: tuple[Rung, ...] = ("ipc", "shm", "tcp")


def cache(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-(1 << 62), 1 << 62, (BLOCKS, 2, 64), generator=generator) for _ in range(LAYERS)]


class Ear:
    """Receiver and Landing: takes blocks until it is told not to."""

    def __init__(self, blocks: PagedBlocks) -> None:
        self.blocks = blocks
        self.happened: SimpleQueue[tuple[object, ...]] = SimpleQueue()
        self.wanted: Callable[[int], bool] = lambda target: True
        self.channel: Channel | None = None

    def message(self, channel: object, body: bytes) -> None:
        self.happened.put(("message", body))

    def lost(self, channel: object, error: ChannelError) -> None:
        self.happened.put(("lost", error.reason))

    def window(self, frame: Frame) -> Pages | None:
        raise AssertionError("a piece is asked for as a whole")

    def landed(self, frame: Frame, broken: list[int]) -> None:
        raise AssertionError("a piece lands as a whole")

    def expects(self, frame: Frame, targets: Sequence[int]) -> bool:
        return all(map(self.wanted, targets))

    def arrived(self, frame: Frame, targets: Sequence[int], broken: Sequence[int]) -> None:
        for block in targets:
            self.happened.put(("landed", block, [block] if block in broken else []))

    def done(self, transfer: int, blocks: int) -> None:
        self.happened.put(("done", transfer, blocks))

    def until_done(self) -> tuple[list[int], list[int]]:
        """What landed, and what of it is broken."""
        landed: list[int] = []
        broken: list[int] = []
        while (what := self.happened.get(timeout=WAIT_S))[0] != "done":
            assert what[0] == "landed", what
            assert isinstance(what[1], int)
            assert isinstance(what[2], list)
            landed.append(what[1])
            broken += what[2]
        return landed, broken


class Pair:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, rung: Rung, window: int) -> None:
        monkeypatch.setattr(ipc, "present", lambda: True)
        monkeypatch.setattr(ipc, "_spare", {})  # rings of other stand-ins
        self.source, self.target = cache(1), cache(2)
        a, b = (paged(layers, monkeypatch, BLOCKS) for layers in (self.source, self.target))
        self.a, self.b = a, b
        arrived: SimpleQueue[Channel] = SimpleQueue()
        self.listener = Listener(KEY, lambda: Identity("p", 7, Layout()), arrived.put, RUNGS)
        who = Identity("d", 3, Layout())
        self.decode = dial(self.listener.addr, KEY, who, rungs=(rung,), window=window)
        self.prefill = arrived.get(timeout=WAIT_S)
        self.at_decode, self.at_prefill = Ear(b), Ear(a)
        self.decode.start(self.at_decode, self.at_decode)
        self.prefill.start(self.at_prefill, None)
        self.decode.expose([Extent(0, 0, True, b)])
        self.prefill.use([Extent(0, 0, True, a)])
        for channel in (self.decode, self.prefill):
            if rung == "ipc":
                wait_for(lambda channel=channel: bool(channel.rungs))  # type: ignore[misc]

    def write(self, transfer: int, pairs: list[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.prefill.write(transfer, 0, target, [Pages(source, 1, self.a.block_bytes)])

    def same(self, pairs: list[tuple[int, int]]) -> bool:
        return all(
            torch.equal(x[s], y[t]) for s, t in pairs for x, y in zip(self.source, self.target, strict=True)
        )

    def close(self) -> None:
        self.decode.close()
        self.prefill.close()
        self.listener.close()


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def shuffled(seed: int, count: int = BLOCKS) -> list[tuple[int, int]]:
    chosen = random.Random(seed)
    return list(zip(chosen.sample(range(BLOCKS), count), chosen.sample(range(BLOCKS), count), strict=True))


@pytest.fixture(params=RUNGS)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(mover, "PIECE", 3 * 2048)
    made = Pair(monkeypatch, request.param, 1 << 16)
    assert made.decode.rungs == made.prefill.rungs == (request.param,)
    yield made
    made.close()


def test_scattered_blocks_land_through_a_ring_that_wraps(pair: Pair) -> None:
    for transfer in range(6):
        pairs = shuffled(transfer)
        pair.write(transfer, pairs)
        pair.prefill.finish(transfer, BLOCKS)
        assert pair.at_decode.until_done() == ([target for _, target in pairs], [])
        assert pair.same(pairs)


def test_runs_and_single_blocks_of_two_transfers(pair: Pair) -> None:
    pair.prefill.write(1, 0, 10, [Pages(20, 7, pair.a.block_bytes), Pages(3, 1, pair.a.block_bytes)])
    pair.prefill.write(2, 0, 30, [Pages(5, 2, pair.a.block_bytes)])
    pair.prefill.finish(1, 8)
    assert pair.at_decode.until_done() == ([*range(10, 18), 30, 31], [])
    pair.prefill.finish(2, 2)
    assert pair.at_decode.until_done() == ([], [])
    assert pair.same([(20 + at, 10 + at) for at in range(7)] + [(3, 17), (5, 30), (6, 31)])


def test_what_was_written_goes_out_when_it_is_pushed(pair: Pair) -> None:
    pair.write(1, [(4, 9)])
    pair.prefill.push()
    pair.prefill.flush(1)
    assert pair.at_decode.happened.get(timeout=WAIT_S) == ("landed", 9, [])


def test_damage_on_the_way_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = HostGpu.copy
    left = [2 if pair.decode.rung != "ipc" else 0]

    def damaging(self: HostGpu, target: int, source: int, size: int, stream: object) -> None:
        copied(self, target, source, size, stream)  # type: ignore[arg-type]
        left[0] -= 1
        if left[0] == 1:
            ctypes.c_ubyte.from_address(target + 77).value ^= 1

    launched = HostGpu.launch

    def launching(self: HostGpu, function: object, grid: tuple[int, int], *rest: object) -> None:
        launched(self, function, grid, *rest)  # type: ignore[arg-type]
        if left[0] == 0:
            left[0] = -1
            ring = pair.prefill._ways["ipc"].room(0)  # type: ignore[attr-defined]
            ctypes.c_ubyte.from_address(ring.address + 77).value ^= 1

    monkeypatch.setattr(HostGpu, "copy", damaging)
    if pair.decode.rung == "ipc":
        monkeypatch.setattr(HostGpu, "launch", launching)
    pairs = shuffled(1, 9)
    pair.write(1, pairs)
    pair.prefill.finish(1, 9)
    landed, broken = pair.at_decode.until_done()
    assert landed == [target for _, target in pairs]
    assert broken == [landed[0]]
    pair.write(2, pairs)
    pair.prefill.finish(2, 9)
    assert pair.at_decode.until_done() == (landed, []), "the next transfer is whole"
    assert pair.same(pairs)


def test_what_a_peer_of_an_earlier_channel_writes_into_the_ring_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was stopped, taken for lost, and goes on: its pieces are whole, of the same transfer number and blocks."""
    monkeypatch.setattr(mover, "PIECE", 3 * 2048)
    monkeypatch.setattr(mover, "BETWEEN_GPUS", 1)
    pairs = shuffled(1, 9)

    def ring_of(pair: Pair) -> tuple[int, int]:
        room = pair.decode._ways["ipc"].room(0)  # type: ignore[attr-defined]
        return room.address, room.size

    earlier = Pair(monkeypatch, "ipc", 1 << 16)
    earlier.write(1, pairs)
    earlier.prefill.finish(1, 9)
    assert earlier.at_decode.until_done()[1] == []
    stale = ctypes.string_at(*ring_of(earlier))
    earlier.close()

    pair = Pair(monkeypatch, "ipc", 1 << 16)
    way = pair.decode._ways["ipc"]
    arrive = way.arrive  # type: ignore[attr-defined]
    place, size = ring_of(pair)
    assert size == len(stale)

    def spoilt(lane: int, frame: Frame) -> None:
        arrive(lane, frame)
        if frame.offset == 0:
            ctypes.memmove(place, stale, frame.size)

    monkeypatch.setattr(way, "arrive", spoilt)
    pair.write(1, pairs)
    pair.prefill.finish(1, 9)
    landed, broken = pair.at_decode.until_done()
    assert broken == landed[:3]
    monkeypatch.setattr(way, "arrive", arrive)
    pair.write(2, pairs)
    pair.prefill.finish(2, 9)
    assert pair.at_decode.until_done() == (landed, [])
    assert pair.same(pairs)
    pair.close()


def test_a_piece_with_a_block_that_is_not_wanted_changes_nothing(pair: Pair) -> None:
    before = [layer.clone() for layer in pair.target]
    pair.at_decode.wanted = lambda target: target != 11
    pair.write(1, [(0, 10), (1, 15), (2, 11)])
    pair.prefill.push()
    pair.write(1, [(3, 20), (4, 21), (5, 22)])
    pair.prefill.finish(1, 6)
    landed, broken = pair.at_decode.until_done()
    assert (landed, broken) == ([20, 21, 22], [])
    for old, new in zip(before, pair.target, strict=True):
        assert torch.equal(old[:20], new[:20])
    pair.at_decode.wanted = lambda target: False
    for transfer in range(2, 8):  # credit comes back for what is thrown away, too
        pair.write(transfer, shuffled(transfer))
        pair.prefill.finish(transfer, BLOCKS)
        assert pair.at_decode.until_done() == ([], [])


def test_a_channel_that_is_lost_in_mid_transfer_is_lost_once_and_behind_the_last_landing(pair: Pair) -> None:
    pair.write(1, shuffled(1, 9))
    pair.prefill.push()
    pair.decode.lose(ChannelError("closed", "for the test"))
    wait_for(lambda: pair.prefill.lost is not None)
    with pytest.raises(ChannelError):
        pair.write(2, shuffled(2))
    ends = [pair.at_decode, pair.at_prefill]
    for ear in ends:
        while (what := ear.happened.get(timeout=WAIT_S))[0] != "lost":
            assert what[0] == "landed"
        assert ear.happened.empty()


def test_a_frame_that_makes_no_sense_ends_the_channel(pair: Pair) -> None:
    way = pair.prefill._ways[pair.prefill.rungs[0]]
    frame = Frame(WRITE, RUNG_NAMES.index(way.rung), transfer=1, blocks=1, size=512)
    way.streams[0].tell(frame, bytes(4))
    assert pair.at_decode.happened.get(timeout=WAIT_S) == ("lost", "protocol")


def test_everything_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for rung in RUNGS:
        made = Pair(monkeypatch, rung, 1 << 16)
        made.write(1, shuffled(1))
        made.prefill.finish(1, BLOCKS)
        made.at_decode.until_done()
        made.close()
        for blocks in (made.a, made.b):
            assert isinstance(blocks.device, HostGpu)
            assert not blocks.device.pinned
            kept = [ring for rings in ipc._spare.values() for ring in rings]
            assert set(blocks.device.held) <= set(kept)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_channel_that_has_ended_takes_nothing_for_a_cache_that_comes_later(
    monkeypatch: pytest.MonkeyPatch, rung: Rung
) -> None:
    """Peers come and go while weights are loaded."""
    made = Pair(monkeypatch, rung, 1 << 16)
    made.close()
    kept = {ring for rings in ipc._spare.values() for ring in rings}
    later = paged(cache(3), monkeypatch, BLOCKS)
    made.decode.expose([Extent(0, 0, True, later)])
    made.prefill.use([Extent(0, 0, True, later)])
    for thread in threading.enumerate():
        if thread.name.startswith("kv-gpu-"):
            thread.join()
    assert isinstance(later.device, HostGpu)
    assert (later.device.held, later.device.pinned) == ({}, set())
    assert {ring for rings in ipc._spare.values() for ring in rings} == kept


def test_blocks_larger_than_half_the_window_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Pair(monkeypatch, "shm", 4096)
    with pytest.raises(ValueError, match="widen the window"):
        made.write(1, [(1, 1)])
    made.close()


def test_ipc_says_why_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: HostGpu, handle: bytes) -> int:
        raise CudaError("cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_VALUE")

    monkeypatch.setattr(HostGpu, "open", refused)
    monkeypatch.setattr(ipc, "present", lambda: True)
    a, b = (paged(cache(seed), monkeypatch, BLOCKS) for seed in (1, 2))
    arrived: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), arrived.put, RUNGS)
    decode = dial(listener.addr, KEY, Identity("d", 3, Layout()), rungs=("ipc", "tcp"))
    prefill = arrived.get(timeout=WAIT_S)
    decode.start(Ear(b), Ear(b))
    prefill.start(Ear(a), None)
    decode.expose([Extent(0, 0, True, b)])
    prefill.use([Extent(0, 0, True, a)])
    for channel in (decode, prefill):
        wait_for(lambda channel=channel: any("PID and IPC namespaces" in why for why in channel.passed))  # type: ignore[misc]
        assert channel.rungs == ("tcp",)
        channel.close()
    listener.close()


def test_without_a_driver_ipc_is_passed_over() -> None:
    if present():
        pytest.skip("there is an NVIDIA driver here")
    arrived: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), arrived.put, RUNGS)
    decode = dial(listener.addr, KEY, Identity("d", 3, Layout()), rungs=("ipc", "tcp"))
    assert decode.rungs == ("tcp",)
    assert decode.passed == ("ipc: there is no NVIDIA driver here",)
    arrived.get(timeout=WAIT_S).close()
    decode.close()
    listener.close()
