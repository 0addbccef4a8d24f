"""The staged path and CUDA IPC on a real GPU: scattered blocks arrive byte for byte, and a flipped bit is found.

Skipped where there is no GPU; `python -m pytest tests/transport/test_cuda.py` on a machine that has one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import random
from collections import deque
from typing import Any

import pytest
import torch

from kserve_ext.core.kv_chunks import Chunk, chunks
from runtimes.transport.cuda import kernels, slots
from runtimes.transport.cuda.blocks import Moves, PagedBlocks
from runtimes.transport.cuda.pipeline import Inbound, Outbound

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with CUDA")

LAYERS, BLOCKS = 5, 64


def cache(
    seed: int, shape: tuple[int, ...] = (2, 16, 3, 8), gpu: int = 0
) -> tuple[list[torch.Tensor], PagedBlocks]:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.randn((BLOCKS, *shape), generator=generator).to(torch.bfloat16).to(f"cuda:{gpu}")
        for _ in range(LAYERS)
    ]
    return layers, PagedBlocks(layers)


def same(a: list[torch.Tensor], sources: list[int], b: list[torch.Tensor], targets: list[int]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(
        torch.equal(x[sources].view(torch.int16).cpu(), y[targets].view(torch.int16).cpu()) for x, y in pairs
    )


def move(
    outbound: Outbound,
    inbound: Inbound,
    free: deque[int],
    sources: list[int],
    targets: list[int],
    damage: int = -1,
) -> list[int]:
    """One transfer within this thread: what is posted is taken at once. `damage`: the chunk in which a bit flips."""
    expected = inbound.expect(targets)
    taken = 0

    def acquire(wait: bool) -> int | None:
        if wait and not free:
            inbound.flush()
        return free.popleft() if free else None

    def post(slot: int, chunk: Chunk) -> None:
        nonlocal taken
        if taken == damage:
            byte = ctypes.c_ubyte.from_address(outbound._slots.addresses[slot] + 11)
            byte.value ^= 4
        taken += 1
        inbound.take(slot, chunk, expected)

    outbound.send(sources, chunks(LAYERS, 0, len(sources), outbound.rows), acquire, post)
    return inbound.finish(expected)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("shape", [(2, 16, 3, 8), (2, 16, 8, 128), (1, 1, 1, 8)])
def test_scattered_blocks_arrive_byte_for_byte(rows: int, shape: tuple[int, ...]) -> None:
    mine, a = cache(1, shape)
    theirs, b = cache(2, shape)
    ring = slots.pinned(a.device, 3, a.slot_bytes(rows))
    free = deque(range(3))
    outbound, inbound = Outbound(a, ring), Inbound(b, ring, free.append)
    for seed in range(4):
        chosen = random.Random(seed)
        count = chosen.choice((1, 5, BLOCKS))
        sources, targets = chosen.sample(range(BLOCKS), count), chosen.sample(range(BLOCKS), count)
        before = [layer.clone() for layer in theirs]
        assert move(outbound, inbound, free, sources, targets) == []
        assert same(mine, sources, theirs, targets)
        rest = [block for block in range(BLOCKS) if block not in targets]
        assert same(before, rest, theirs, rest), "other blocks are untouched"
        assert sorted(free) == [0, 1, 2]
    for end in (outbound, inbound, ring):
        end.close()


@needs_gpu
def test_a_flipped_bit_is_found_and_only_its_block_is_bad() -> None:
    _, a = cache(1)
    _, b = cache(2)
    ring = slots.pinned(a.device, 2, a.slot_bytes(4))
    free = deque(range(2))
    outbound, inbound = Outbound(a, ring), Inbound(b, ring, free.append)
    assert move(outbound, inbound, free, [3, 1, 4, 15, 9], [0, 1, 2, 3, 4], damage=1) == [
        4
    ]  # row 4: block 4, layer 0
    assert move(outbound, inbound, free, [3, 1], [0, 1]) == [], "the next transfer is whole"


@needs_gpu
def test_checksums_are_as_said() -> None:
    layers, blocks = cache(3, (2, 16, 8, 128))
    row, words = blocks.row_bytes, blocks.words
    buffer = slots.pinned(blocks.device, 1, blocks.slot_bytes(1))
    blocks.device.enter()
    index = torch.tensor([7], device="cuda")
    stream = blocks.device.stream()
    torch.cuda.synchronize()
    Moves(blocks, blocks.gather)(Chunk(0, 1, 2, 1), index.data_ptr(), buffer.addresses[0], stream)
    blocks.device.drain(stream)
    found = list((ctypes.c_uint64 * (row // 8)).from_address(buffer.addresses[0]))
    plain = [value % (1 << 64) for value in layers[2][7].flatten().view(torch.int64).tolist()]
    assert found[:words] == plain
    parts = [plain[at : at + kernels.SEGMENT] for at in range(0, words, kernels.SEGMENT)]
    assert found[words:] == [kernels.checksum(part) for part in parts]


@needs_gpu
def test_what_is_computed_on_another_stream_is_waited_for() -> None:
    mine, a = cache(1, (2, 16, 8, 128))
    theirs, b = cache(2, (2, 16, 8, 128))
    ring = slots.pinned(a.device, 3, a.slot_bytes(16))
    free = deque(range(3))
    outbound, inbound = Outbound(a, ring), Inbound(b, ring, free.append)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        for layer in mine:
            layer.fill_(1.5)
    expected = inbound.expect(range(BLOCKS))

    def acquire(wait: bool) -> int | None:
        if wait and not free:
            inbound.flush()
        return free.popleft() if free else None

    todo = chunks(LAYERS, 0, BLOCKS, outbound.rows)
    outbound.send(
        range(BLOCKS),
        todo,
        acquire,
        lambda slot, chunk: inbound.take(slot, chunk, expected),
        stream.cuda_stream,
    )
    assert inbound.finish(expected) == []
    assert all(bool((layer == 1.5).all()) for layer in theirs)


@needs_gpu
def test_bad_input_names_what_is_wrong() -> None:
    _, a = cache(1)
    ring = slots.pinned(a.device, 2, a.slot_bytes(4))
    outbound, inbound = Outbound(a, ring), Inbound(a, ring, lambda slot: None)
    with pytest.raises(ValueError, match="block 64: the cache has 64"):
        outbound.send([64], iter(()), lambda wait: 0, lambda slot, chunk: None)
    expected = inbound.expect([1, 2])
    for chunk in (Chunk(0, 3, 0, 1), Chunk(0, 2, 0, 5), Chunk(0, 2, 9, 2), Chunk(-1, 2, 0, 1)):
        with pytest.raises(ValueError, match="beyond"):
            inbound.take(0, chunk, expected)
    with pytest.raises(ValueError, match="no room"):
        Outbound(a, slots.pinned(a.device, 1, 512))
    with pytest.raises(ValueError, match="a multiple of 512"):
        Outbound(a, slots.pinned(a.device, 1, 2000))
    with pytest.raises(ValueError, match=r"layers\[1\]: differs"):
        PagedBlocks([torch.zeros(4, 64, device="cuda"), torch.zeros(8, 64, device="cuda")])
    with pytest.raises(ValueError, match="not a multiple of 16"):
        PagedBlocks([torch.zeros(4, 3, device="cuda")])
    with pytest.raises(ValueError, match="not on a GPU"):
        PagedBlocks([torch.zeros(4, 64)])
    with pytest.raises(slots.SlotError, match="don't share /dev/shm"):
        slots.attached(a.device, "galaxy-kv-slots-none", 1, 64)
    with pytest.raises(slots.SlotError, match="CUDA IPC"):
        slots.of_peer(a.device, bytes(64), 1, 64)


def _send_to_peer(gpu: int, offer: Any, kind: str, rows: int, sources: list[int], pipe: Any) -> None:
    _, blocks = cache(1, gpu=gpu)
    ring = (slots.of_peer if kind == "ipc" else slots.attached)(
        blocks.device, offer, 2, blocks.slot_bytes(rows)
    )
    outbound = Outbound(blocks, ring)
    free = [0, 1]

    def acquire(wait: bool) -> int | None:
        if wait and not free:
            free.append(pipe.recv())
        return free.pop() if free else None

    outbound.send(
        sources,
        chunks(LAYERS, 0, len(sources), rows),
        acquire,
        lambda slot, chunk: pipe.send((slot, tuple(chunk))),
    )
    pipe.send(None)
    pipe.recv()
    ring.close()


@needs_gpu
@pytest.mark.parametrize("kind", ["ipc", "shared"])
def test_two_processes(kind: str) -> None:
    """Each on a GPU of its own where there are two."""
    mine, _ = cache(1)
    theirs, b = cache(2)
    sources, targets = random.Random(5).sample(range(BLOCKS), 40), random.Random(6).sample(range(BLOCKS), 40)
    made, offer = (slots.on_gpu if kind == "ipc" else slots.shared)(b.device, 2, b.slot_bytes(7))
    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    gpu = torch.cuda.device_count() - 1
    process = spawn.Process(target=_send_to_peer, args=(gpu, offer, kind, 7, sources, other))
    process.start()
    other.close()
    inbound = Inbound(b, made, pipe.send)
    expected = inbound.expect(targets)
    while (message := pipe.recv()) is not None:
        inbound.take(message[0], Chunk(*message[1]), expected)
        inbound.flush()
    assert inbound.finish(expected) == []
    assert same(mine, sources, theirs, targets)
    pipe.send("done")
    process.join(30)
    assert process.exitcode == 0
    if kind == "shared":
        slots.unlink(str(offer))
    inbound.close()
    made.close()
