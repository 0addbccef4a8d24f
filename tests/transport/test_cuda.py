"""The staged path and CUDA IPC on a real GPU: scattered blocks arrive byte for byte, and a flipped bit is found.

Skipped where there is no GPU; `python -m pytest tests/transport/test_cuda.py` on a machine that has one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from runtimes.transport.cuda import kernels, slots
from runtimes.transport.cuda.blocks import Moves, PagedBlocks
from runtimes.transport.cuda.pipeline import Inbound, Outbound

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with CUDA")

LAYERS, BLOCKS = 5, 64
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
        self.ring = slots.pinned(a.device, count, -(-a.piece_bytes(most) // 512) * 512)
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
            self.outbound.fill(self.ring.addresses[slot], sources[start:end], (slot, targets[start:end]))
        self.outbound.flush()
        self.inbound.flush()
        return self.broken

    def _filled(self, tag: tuple[int, list[int]]) -> None:
        slot, targets = tag
        if self.damage == 0:
            ctypes.c_ubyte.from_address(self.ring.addresses[slot] + 11).value ^= 4
        self.damage -= 1
        self.inbound.take(self.ring.addresses[slot], targets, slot)

    def _landed(self, slot: int, broken: list[int]) -> None:
        self.free.append(slot)
        self.broken += broken

    def close(self) -> None:
        for end in (self.outbound, self.inbound, self.ring):
            end.close()


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
def test_checksums_are_as_said() -> None:
    layers, blocks = cache(3, heads=64)
    row, words = blocks.row_bytes, blocks.words
    buffer = slots.pinned(blocks.device, 1, blocks.piece_bytes(1))
    stream = blocks.device.stream()
    torch.cuda.synchronize()
    Moves(blocks, blocks.gather)([7], buffer.addresses[0], stream)
    blocks.device.drain(stream)
    found = list((ctypes.c_uint64 * (LAYERS * row // 8)).from_address(buffer.addresses[0]))
    for number, layer in enumerate(layers):
        plain = [value % (1 << 64) for value in layer[7].flatten().view(torch.int64).tolist()]
        assert found[number * words : (number + 1) * words] == plain
        parts = [plain[at : at + kernels.SEGMENT] for at in range(0, words, kernels.SEGMENT)]
        sums = LAYERS * words + number * blocks.segments
        assert found[sums : sums + blocks.segments] == [kernels.checksum(part) for part in parts]


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
    _, a = cache(1)
    for layers, why in (
        ([torch.zeros(4, 64, device="cuda"), torch.zeros(8, 64, device="cuda")], r"layers\[1\]: differs"),
        ([torch.zeros(4, 3, device="cuda")], "not a multiple of 16"),
        ([torch.zeros(4, 64)], "not on a GPU"),
    ):
        with pytest.raises(ValueError, match=why):
            PagedBlocks(layers, 4)
    with pytest.raises(slots.SlotError, match="don't share /dev/shm"):
        slots.attached(a.device, "galaxy-kv-slots-none", 1, 64)
    with pytest.raises(slots.SlotError, match="CUDA IPC"):
        slots.of_peer(a.device, bytes(64), 1, 64)


def _send_to_peer(gpu: int, offer: Any, kind: str, sources: list[int], pipe: Any) -> None:
    _, blocks = cache(1, gpu=gpu)
    size = -(-blocks.piece_bytes(7) // 512) * 512
    ring = (slots.of_peer if kind == "ipc" else slots.attached)(blocks.device, offer, 2, size)
    outbound: Outbound[tuple[int, int]] = Outbound(blocks, 7, pipe.send, on_gpu=kind == "ipc")
    for number, start in enumerate(range(0, len(sources), 7)):
        if number >= 2:
            outbound.flush()
            pipe.recv()
        outbound.fill(ring.addresses[number % 2], sources[start : start + 7], (number % 2, start))
    outbound.flush()
    pipe.send(None)
    for _ in ring.addresses:
        pipe.recv()
    ring.close()


@needs_gpu
@pytest.mark.parametrize("kind", ["ipc", "shared"])
def test_two_processes(kind: str) -> None:
    """Each on a GPU of its own where there are two."""
    mine, _ = cache(1)
    theirs, b = cache(2)
    sources, targets = random.Random(5).sample(range(BLOCKS), 40), random.Random(6).sample(range(BLOCKS), 40)
    size = -(-b.piece_bytes(7) // 512) * 512
    made, offer = (slots.on_gpu if kind == "ipc" else slots.shared)(b.device, 2, size)
    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    gpu = torch.cuda.device_count() - 1
    process = spawn.Process(target=_send_to_peer, args=(gpu, offer, kind, sources, other))
    process.start()
    other.close()
    bad: list[int] = []

    def landed(slot: int, broken: list[int]) -> None:
        bad.extend(broken)
        pipe.send(slot)

    inbound: Inbound[int] = Inbound(b, 7, landed, on_gpu=kind == "ipc")
    while (message := pipe.recv()) is not None:
        slot, start = message
        inbound.take(made.addresses[slot], targets[start : start + 7], slot)
        inbound.flush()
    assert bad == []
    assert same(mine, sources, theirs, targets)
    process.join(30)
    assert process.exitcode == 0
    if kind == "shared":
        slots.unlink(str(offer))
    inbound.close()
    made.close()
