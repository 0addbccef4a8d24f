"""Blocks of a real GPU's cache: pieces in this process, and the runtime's halves between two, over every rung.

Skipped where there is no GPU; `python -m pytest tests/transport/test_cuda.py` on a machine that has one. With two of
them each process has its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import socket
from collections import deque
from collections.abc import Sequence

import pytest
import torch

from runtimes.transport.carriers import SocketStream
from runtimes.transport.channel import ChannelError, Extent, Frame, Rung
from runtimes.transport.cuda import ipc, kernels
from runtimes.transport.cuda.blocks import Moves, PagedBlocks
from runtimes.transport.cuda.ipc import Ipc
from runtimes.transport.cuda.pipeline import Inbound, Outbound, Sums
from runtimes.transport.cuda.straight import runs
from runtimes.transport.ringed import Ringed
from runtimes.transport.verbs import gpu
from runtimes.transport.verbs.pages import requests, spans
from tests.support.gpu_pair import WAIT_S, Pair, Shape, until
from tests.transport.verbs.test_pages import Side

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with CUDA")

LAYERS, BLOCKS = 5, 64
DMA_BUF_SUPPORTED = 124  # of CUdevice_attribute
LAYOUTS = ("blocks", "keys and values apart", "blocks outside", "heads before tokens")


def cache(
    seed: int, layout: str = "blocks", heads: int = 3, gpu: int = 0
) -> tuple[list[torch.Tensor], PagedBlocks]:
    """Layers as attention backends lay them out: tensors of 16 tokens a block."""
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16).to(f"cuda:{gpu}")

    if layout == "keys and values apart":
        layers = [new(2, BLOCKS, 16, heads, 8) for _ in range(LAYERS)]
    elif layout == "blocks outside":
        together = new(BLOCKS, LAYERS, 2, 16, heads, 8)
        layers = [together[:, layer] for layer in range(LAYERS)]
    elif layout == "heads before tokens":
        layers = [new(BLOCKS, 2, heads, 16, 8).permute(0, 1, 3, 2, 4) for _ in range(LAYERS)]
    else:
        layers = [new(BLOCKS, 2, 16, heads, 8) for _ in range(LAYERS)]
    return layers, PagedBlocks(layers, BLOCKS)


def read(layers: Sequence[torch.Tensor], chosen: list[int]) -> list[torch.Tensor]:
    return [
        (x if x.shape[0] == BLOCKS else x.transpose(0, 1))[chosen].view(torch.int16).cpu() for x in layers
    ]


def same(
    a: Sequence[torch.Tensor], sources: list[int], b: Sequence[torch.Tensor], targets: list[int]
) -> bool:
    return all(torch.equal(x, y) for x, y in zip(read(a, sources), read(b, targets), strict=True))


class Loop:
    """Both directions in this thread: what is filled is taken at once."""

    def __init__(self, a: PagedBlocks, b: PagedBlocks, most: int, count: int = 3) -> None:
        self.most = most
        size = -(-a.piece_bytes(most) // 512) * 512
        a.device.enter()
        self.ring = a.device.allocate_host(count * size)
        self.slots = [self.ring + number * size for number in range(count)]
        self.device = a.device
        self.free = deque(range(count))
        self.broken: list[int] = []
        self.outbound: Outbound[tuple[int, list[int]]] = Outbound(a, most, self._filled)
        self.inbound: Inbound[int] = Inbound(b, most, self._landed)
        self.damage = -1  # the piece in which a bit flips

    def move(self, sources: list[int], targets: list[int], damage: int = -1) -> list[int]:
        self.broken, self.damage = [], damage
        for start in range(0, len(sources), self.most):
            if not self.free:
                self.outbound.flush()
                self.inbound.flush()
            slot = self.free.popleft()
            end = start + self.most
            self.outbound.fill(self.slots[slot], sources[start:end], (slot, targets[start:end]))
        self.outbound.flush()
        self.inbound.flush()
        return self.broken

    def _filled(self, tag: tuple[int, list[int]]) -> None:
        slot, targets = tag
        if self.damage == 0:
            ctypes.c_ubyte.from_address(self.slots[slot] + 11).value ^= 4
        self.damage -= 1
        self.inbound.take(self.slots[slot], targets, slot)

    def _landed(self, slot: int, broken: list[int]) -> None:
        self.free.append(slot)
        self.broken += broken

    def close(self) -> None:
        self.outbound.close()
        self.inbound.close()
        self.device.free_host(self.ring)


@needs_gpu
@pytest.mark.parametrize("most", [1, 7, 100])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", [3, 64])
def test_scattered_blocks_arrive_byte_for_byte(most: int, layout: str, heads: int) -> None:
    mine, a = cache(1, layout, heads)
    theirs, b = cache(2, layout, heads)
    loop = Loop(a, b, most)
    for seed in range(4):
        chosen = random.Random(seed)
        count = chosen.choice((1, 5, BLOCKS))
        sources, targets = chosen.sample(range(BLOCKS), count), chosen.sample(range(BLOCKS), count)
        rest = [block for block in range(BLOCKS) if block not in targets]
        before = read(theirs, rest)
        assert loop.move(sources, targets) == []
        assert same(mine, sources, theirs, targets)
        assert all(map(torch.equal, before, read(theirs, rest))), "other blocks are untouched"
        assert sorted(loop.free) == [0, 1, 2]
    loop.close()


@needs_gpu
def test_a_flipped_bit_is_found_and_only_its_block_is_bad() -> None:
    _, a = cache(1)
    _, b = cache(2)
    loop = Loop(a, b, 4)
    assert loop.move([3, 1, 4, 15, 9], [0, 1, 2, 3, 40], damage=1) == [40]
    assert loop.move([3, 1], [0, 1]) == [], "the next transfer is whole"
    loop.close()


@needs_gpu
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_whole_piece_of_another_seed_is_broken(on_gpu: bool) -> None:
    mine, a = cache(1)
    theirs, b = cache(2)
    a.device.enter()
    size = a.piece_bytes(3)
    ring = a.device.allocate(size) if on_gpu else a.device.allocate_host(size)
    told: list[tuple[str, list[int]]] = []
    outbound: Outbound[None] = Outbound(a, 3, lambda tag: None, on_gpu=on_gpu)
    inbound: Inbound[str] = Inbound(b, 3, lambda tag, broken: told.append((tag, broken)), on_gpu=on_gpu)
    outbound.fill(ring, [5, 6, 9], None, 1 << 63)
    outbound.flush()
    inbound.take(ring, [1, 0, 7], "older", (1 << 63) + 1)
    inbound.take(ring, [1, 0, 7], "its own", 1 << 63)
    inbound.flush()
    assert told == [("older", [1, 0, 7]), ("its own", [])]
    assert same(mine, [5, 6, 9], theirs, [1, 0, 7])
    outbound.close()
    inbound.close()
    (a.device.free if on_gpu else a.device.free_host)(ring)


@needs_gpu
def test_checksums_are_as_said() -> None:
    layers, blocks = cache(3, heads=64)
    row, words = blocks.row_bytes, blocks.words
    buffer = blocks.device.allocate_host(blocks.piece_bytes(1))
    stream = blocks.device.stream()
    torch.cuda.synchronize()
    Moves(blocks, blocks.gather)([7], buffer, stream, seed := 0xFEDCBA9876543210)
    blocks.device.drain(stream)
    found = list((ctypes.c_uint64 * (LAYERS * row // 8)).from_address(buffer))
    for number, layer in enumerate(layers):
        plain = [value % (1 << 64) for value in layer[7].flatten().view(torch.int64).tolist()]
        assert found[number * words : (number + 1) * words] == plain
        parts = [plain[at : at + kernels.SEGMENT] for at in range(0, words, kernels.SEGMENT)]
        sums = LAYERS * words + number * blocks.segments
        places = range(number * blocks.segments, (number + 1) * blocks.segments)
        wanted = [kernels.expected(part, seed, place) for part, place in zip(parts, places, strict=True)]
        assert found[sums : sums + blocks.segments] == wanted


def words_of(layer: torch.Tensor, block: int) -> torch.Tensor:
    """As they lie in memory, keys and values by themselves."""
    part = layer.narrow(0 if layer.shape[0] == BLOCKS else 1, block, 1)
    strides = sorted(range(part.dim()), key=part.stride, reverse=True)
    return part.permute(strides).contiguous().flatten().view(torch.int64)


@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", [3, 64])
def test_blocks_are_summed_where_they_lie(layout: str, heads: int) -> None:
    layers, blocks = cache(5, layout, heads)
    told: list[tuple[str, list[int]]] = []
    sums: Sums[str] = Sums(blocks, 9, lambda tag, found: told.append((tag, list(found))))
    pieces = [random.Random(n).sample(range(BLOCKS), n) for n in (1, 5, 9, 2, 8, 7)]
    before = [layer.clone() for layer in layers]
    torch.cuda.synchronize()
    for number, chosen in enumerate(pieces):
        sums.add(chosen, str(number), written=number % 2 == 1)
    sums.flush()
    parts = blocks.parts // LAYERS
    for number, chosen in enumerate(pieces):
        expected = []
        for block in chosen:
            plain = [words_of(layer, block).tolist() for layer in layers]
            each = [[value % (1 << 64) for value in layer] for layer in plain]
            size = len(each[0]) // parts
            expected.append(
                kernels.block_sum([layer[at * size :][:size] for layer in each for at in range(parts)])
            )
        assert told[number] == (str(number), expected)
    assert all(map(torch.equal, before, layers))
    sums.close()


@needs_gpu
def test_a_bit_that_flips_and_rows_that_change_places_change_the_sum() -> None:
    layers, blocks = cache(6, heads=64)
    told: list[int] = []
    sums: Sums[None] = Sums(blocks, 1, lambda tag, found: told.extend(found))

    def summed() -> int:
        torch.cuda.synchronize()
        sums.add([7], None, written=True)
        sums.flush()
        return told[-1]

    first = summed()
    bits = layers[3][7].view(torch.int16).flatten()
    bits[4321] ^= 64
    assert summed() != first
    bits[4321] ^= 64
    assert summed() == first
    keys, values = layers[2][7]
    swapped = keys.clone()
    keys.copy_(values)
    values.copy_(swapped)
    assert summed() != first
    sums.close()


@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_that_a_copy_carries_in_place_of_a_network_card(layout: str) -> None:
    (mine, a), (theirs, b) = cache(1, layout), cache(2, layout)
    ends = [Side(blocks, 1000) for blocks in (a, b)]
    block = spans(ends[0].sheet, ends[0].regions, ends[1].sheet, ends[1].lying)
    told: list[list[int]] = []
    sums = [Sums[None](blocks, BLOCKS, lambda tag, found: told.append(list(found))) for blocks in (a, b)]
    stream = a.device.stream()
    for seed in range(4):
        sources, targets = shuffled(seed, random.Random(seed).choice((1, 17, BLOCKS)), BLOCKS)
        rest = [block for block in range(BLOCKS) if block not in targets]
        before = read(theirs, rest)
        sums[0].add(sources, None)
        sums[0].flush()
        chosen = runs(zip(sources, targets, strict=True))
        for piece in requests(block, ends[0].sheet.stride, ends[1].sheet.stride, chosen):
            a.device.copy(piece.remote, piece.local, piece.size, stream)
        a.device.drain(stream)
        sums[1].add(targets, None, written=True)
        sums[1].flush()
        assert told[-1] == told[-2]
        assert same(mine, sources, theirs, targets)
        assert all(map(torch.equal, before, read(theirs, rest)))
    a.device.destroy([stream], [])
    for each in sums:
        each.close()


@needs_gpu
def test_what_is_computed_on_another_stream_is_waited_for_before_it_is_summed() -> None:
    layers, blocks = cache(1)
    told: list[list[int]] = []
    sums: Sums[None] = Sums(blocks, BLOCKS, lambda tag, found: told.append(list(found)))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        for layer in layers:
            layer.fill_(1.5)
    blocks.mark(range(BLOCKS), stream.cuda_stream)
    sums.add(list(range(BLOCKS)), None)
    sums.flush()
    torch.cuda.synchronize()
    sums.add(list(range(BLOCKS)), None)
    sums.flush()
    assert told[0] == told[1]
    assert len(set(told[0])) == 1
    sums.close()


@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_cache_is_exported_as_a_dma_buf_where_the_driver_says_that_it_can(layout: str) -> None:
    """By pages, as a network card registers it; else the driver's word is the reason."""
    _, blocks = cache(1, layout)
    can, device = ctypes.c_int(), ctypes.c_int()
    driver = ctypes.CDLL("libcuda.so.1")
    assert not driver.cuDeviceGet(ctypes.byref(device), blocks.device.ordinal)
    assert not driver.cuDeviceGetAttribute(ctypes.byref(can), DMA_BUF_SUPPORTED, device)
    for start, size in blocks.memory():
        offset = start % mmap.PAGESIZE
        length = -(-(offset + size) // mmap.PAGESIZE) * mmap.PAGESIZE
        if not can.value:
            with pytest.raises(ChannelError, match="CUDA_ERROR_"):
                gpu.export(start - offset, length)
            continue
        descriptor = gpu.export(start - offset, length)
        assert "dmabuf" in os.readlink(f"/proc/self/fd/{descriptor}")
        os.close(descriptor)


@needs_gpu
def test_what_is_computed_on_another_stream_is_waited_for() -> None:
    mine, a = cache(1)
    theirs, b = cache(2)
    loop = Loop(a, b, 16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        for layer in mine:
            layer.fill_(1.5)
    a.mark(range(BLOCKS), stream.cuda_stream)
    assert loop.move(list(range(BLOCKS)), list(range(BLOCKS))) == []
    assert all(bool((layer == 1.5).all()) for layer in theirs)
    loop.close()


@needs_gpu
def test_bad_input_names_what_is_wrong() -> None:
    for layers, why in (
        ([torch.zeros(4, 64, device="cuda"), torch.zeros(8, 64, device="cuda")], r"layers\[1\]: differs"),
        ([torch.zeros(4, 3, device="cuda")], "not a multiple of 16"),
        ([torch.zeros(4, 64)], "not on a GPU"),
    ):
        with pytest.raises(ValueError, match=why):
            PagedBlocks(layers, 4)


RUNGS: tuple[Rung, ...] = ("ipc", "shm", "tcp")
SHAPE = Shape(layers=LAYERS, heads=4, blocks=BLOCKS)
LARGE = Shape(layers=32, heads=8, blocks=1100)


def gpus() -> tuple[int, int]:
    return 0, torch.cuda.device_count() - 1


def shuffled(seed: int, count: int, blocks: int) -> tuple[list[int], list[int]]:
    chosen = random.Random(seed)
    return chosen.sample(range(blocks), count), chosen.sample(range(blocks), count)


@needs_gpu
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("rung", RUNGS)
def test_between_processes_every_byte_arrives(rung: Rung, apart: bool) -> None:
    pair = Pair(SHAPE._replace(apart=apart), rung, gpus(), window=4 << 20)
    assert pair.channel.rungs == (rung,), pair.channel.passed
    for seed, count in enumerate((1, BLOCKS, 17, BLOCKS)):
        sources, targets = shuffled(seed, count, BLOCKS)
        _, outcome = pair.move(sources, targets)
        assert (outcome.reason, outcome.rung) == ("", rung)
        assert outcome.bytes == count * SHAPE.block_bytes
        assert pair.differing(sources, targets) == 0
        assert pair.landings.results()[1] == set()
    assert pair.close() == 0


@needs_gpu
@pytest.mark.parametrize("rung", RUNGS)
def test_between_processes_damage_fails_the_transfer_and_not_the_next(rung: Rung) -> None:
    pair = Pair(SHAPE, rung, gpus())
    way = pair.channel._ways[rung]
    assert isinstance(way, Ringed)
    arrive, device = way.arrive, PagedBlocks(list(pair.cache.values()), BLOCKS).device

    def damaged(lane: int, frame: Frame) -> None:
        arrive(lane, frame)
        byte = (ctypes.c_ubyte * 1)()
        place, here = way.room(lane).address + frame.offset + 100, ctypes.addressof(byte)
        device.enter()
        for target, source in ((here, place), (place, here)):
            stream = device.stream()
            device.copy(target, source, 1, stream)
            device.drain(stream)
            byte[0] ^= 16

    monkey = pytest.MonkeyPatch()
    monkey.setattr(way, "arrive", damaged)
    sources, targets = shuffled(3, 20, BLOCKS)
    assert pair.move(sources, targets)[1].reason == "checksum"
    assert len(pair.landings.results()[1]) == 1
    monkey.undo()
    assert pair.move(sources, targets)[1].reason == ""
    assert pair.differing(sources, targets) == 0
    assert pair.close() == 0


@needs_gpu
@pytest.mark.parametrize("rung", RUNGS)
def test_between_processes_a_transfer_is_cancelled_in_the_middle(rung: Rung) -> None:
    pair = Pair(LARGE, rung, gpus())
    sources, targets = shuffled(4, 1000, LARGE.blocks)
    number, ended = pair.begin(sources, targets)
    until(lambda: number not in pair.landings._transfers or pair.landings._transfers[number].bytes > 0)
    pair.landings.cancel(number, "gone")
    outcome = ended.get(timeout=WAIT_S)[1]
    assert outcome.reason == "gone"
    assert outcome.bytes < 1000 * LARGE.block_bytes
    _, outcome = pair.move(sources[:50], targets[:50])
    assert outcome.reason == ""
    assert pair.differing(sources[:50], targets[:50]) == 0
    assert pair.close() == 0


@needs_gpu
@pytest.mark.parametrize("rung", RUNGS)
def test_between_processes_the_peer_is_killed_in_the_middle(rung: Rung) -> None:
    pair = Pair(LARGE, rung, gpus())
    sources, targets = shuffled(5, 1000, LARGE.blocks)
    number, ended = pair.begin(sources, targets)
    until(lambda: number not in pair.landings._transfers or pair.landings._transfers[number].bytes > 0)
    pair.kill()
    assert ended.get(timeout=WAIT_S)[1].reason.startswith("channel-")
    assert pair.landings.results()[1] == {f"engine-{number}"}
    pair.channel.close()
    torch.cuda.synchronize()
    again = Pair(SHAPE, rung, gpus())
    assert again.move([1, 2], [3, 4])[1].reason == ""
    assert again.differing([1, 2], [3, 4]) == 0
    assert again.close() == 0


@needs_gpu
def test_between_processes_a_peer_that_was_stopped_goes_on_in_a_ring_that_another_one_has() -> None:
    """What it writes there is never used: a transfer has every byte of its own, or fails with its checksums."""
    stopped = Pair(LARGE, "ipc", gpus())
    way = stopped.channel._ways["ipc"]
    assert isinstance(way, Ipc)
    ring = way._ring
    sources, targets = shuffled(6, 1000, LARGE.blocks)
    number, ended = stopped.begin(sources, targets)
    until(lambda: number not in stopped.landings._transfers or stopped.landings._transfers[number].bytes > 0)
    assert stopped.process.pid is not None
    os.kill(stopped.process.pid, signal.SIGSTOP)
    stopped.channel.lose(ChannelError("timeout", "for the test"))
    reason = ended.get(timeout=WAIT_S)[1].reason
    assert reason in ("", "channel-timeout")
    until(lambda: any(ring in rings for rings in ipc._spare.values()))
    pair = Pair(LARGE, "ipc", gpus())
    again = pair.channel._ways["ipc"]
    assert isinstance(again, Ipc)
    assert again._ring == ring
    for attempt in range(6):
        sources, targets = shuffled(7 + attempt, 1000, LARGE.blocks)
        _, ended = pair.begin(sources, targets)
        if attempt == 1:
            os.kill(stopped.process.pid, signal.SIGCONT)
        reason = ended.get(timeout=WAIT_S)[1].reason
        assert reason in ("", "checksum")
        if not reason:
            assert pair.differing(sources, targets) == 0
    assert reason == "", "it has stopped by itself"
    stopped.kill()
    assert pair.close() == 0


class Spoilt:
    """The receiver's ring of a pair: what came to its beginning is read, or written over with what came before."""

    def __init__(self, pair: Pair, stale: bytes) -> None:
        way = pair.channel._ways["ipc"]
        assert isinstance(way, Ipc)
        self._way, self._arrive, self.bytes = way, way.arrive, stale
        self._device = PagedBlocks(list(pair.cache.values()), pair.shape.blocks).device
        self._monkey = pytest.MonkeyPatch()
        self._monkey.setattr(way, "arrive", self._arrived)

    def _arrived(self, lane: int, frame: Frame) -> None:
        self._arrive(lane, frame)
        if frame.offset:
            return
        ring, here = self._way.room(lane).address, ctypes.create_string_buffer(self.bytes, frame.size)
        if self.bytes:
            assert len(self.bytes) == frame.size
            self._copy(ring, ctypes.addressof(here), frame.size)
        else:
            self._copy(ctypes.addressof(here), ring, frame.size)
            self.bytes = here.raw

    def _copy(self, target: int, source: int, size: int) -> None:
        self._device.enter()
        stream = self._device.stream()
        self._device.copy(target, source, size, stream)
        self._device.drain(stream)

    def end(self) -> None:
        self._monkey.undo()


@needs_gpu
def test_between_processes_a_piece_of_an_earlier_channel_in_the_ring_is_broken() -> None:
    """As a peer leaves it there that was stopped and goes on: whole, of as many blocks, with its own checksums."""
    stale = b""
    for sources, reason in (([0, 1, 2], ""), ([5, 6, 7], "checksum")):
        pair = Pair(SHAPE, "ipc", gpus(), window=4 << 20)
        spoilt = Spoilt(pair, stale)
        assert pair.move(sources, [9, 8, 7])[1].reason == reason
        stale = spoilt.bytes
        spoilt.end()
        assert pair.move(sources, [9, 8, 7])[1].reason == ""
        assert pair.differing(sources, [9, 8, 7]) == 0
        assert pair.close() == 0


@needs_gpu
def test_within_one_process_ipc_says_why_it_cannot_be_had() -> None:
    _, blocks = cache(1)
    ends = socket.socketpair()
    ways = [Ipc(SocketStream(end), 1 << 20) for end in ends]
    ways[0].expose([Extent(0, 0, True, blocks)])
    ways[1].use([Extent(0, 0, True, blocks)])
    for way in (ways[1], ways[0]):
        way.told(0, way.streams[0].frame()[1])
        assert not way.usable
        assert "share the PID and IPC namespaces" in way.why
    for end in ends:
        end.close()
