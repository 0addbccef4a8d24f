"""Pieces through staging buffers, on a stand-in for a GPU: layouts, bounds, order, checksums, nothing left over."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtimes.transport.cuda import kernels, pipeline
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.pipeline import Inbound, Outbound
from tests.transport.host_gpu import HostGpu, paged

BLOCKS, LAYERS = 12, 3


def caches(layout: str, seed: int, blocks: int = BLOCKS) -> list[torch.Tensor]:
    random_ = torch.Generator().manual_seed(seed)

    def new(*shape: int) -> torch.Tensor:
        return torch.randint(-(1 << 62), 1 << 62, shape, generator=random_)

    if layout == "blocks outside":
        together = new(blocks, LAYERS, 2, 4, 6)
        return [together[:, layer] for layer in range(LAYERS)]
    if layout == "keys and values apart":
        return [new(2, blocks, 4, 6) for _ in range(LAYERS)]
    return [new(blocks, 2, 600, 2) for _ in range(LAYERS)]


def block(layout: str, layers: list[torch.Tensor], number: int) -> list[torch.Tensor]:
    return [layer[:, number] if layout == "keys and values apart" else layer[number] for layer in layers]


@pytest.mark.parametrize("layout", ["blocks", "blocks outside", "keys and values apart"])
@pytest.mark.parametrize("most", [1, 3, BLOCKS])
def test_blocks_arrive_in_every_layout(layout: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = caches(layout, 1), caches(layout, 2)
    before = [layer.clone() for layer in target]
    a, b = (paged(layers, monkeypatch, BLOCKS) for layers in (source, target))
    size = a.piece_bytes(most)
    ring = a.device.allocate(2 * size)
    landed: list[tuple[int, list[int]]] = []
    inbound: Inbound[int] = Inbound(b, most, lambda tag, broken: landed.append((tag, broken)))
    filled: list[int] = []
    outbound: Outbound[int] = Outbound(a, most, filled.append)
    pairs = list(
        zip(random.Random(3).sample(range(BLOCKS), 9), random.Random(4).sample(range(BLOCKS), 9), strict=True)
    )
    for number, start in enumerate(range(0, len(pairs), most)):
        part = pairs[start : start + most]
        address = ring + number % 2 * size
        outbound.fill(address, [x for x, _ in part], number)
        outbound.flush()
        inbound.take(address, [y for _, y in part], number)
        inbound.flush()
    count = -(-len(pairs) // most)
    assert filled == list(range(count))
    assert landed == [(number, []) for number in range(count)]
    for x, y in pairs:
        for s, t in zip(block(layout, source, x), block(layout, target, y), strict=True):
            assert torch.equal(s, t)
    for other in set(range(BLOCKS)) - {y for _, y in pairs}:
        for t, old in zip(block(layout, target, other), block(layout, before, other), strict=True):
            assert torch.equal(t, old), "other blocks are untouched"


def test_one_flipped_bit_names_its_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (paged(caches("blocks", seed), monkeypatch) for seed in (1, 2))
    ring = a.device.allocate(a.piece_bytes(4))
    told: list[tuple[str, list[int]]] = []
    inbound: Inbound[str] = Inbound(b, 4, lambda tag, broken: told.append((tag, broken)))
    outbound: Outbound[str] = Outbound(a, 4, lambda tag: None)
    outbound.fill(ring, [0, 1, 2, 3], "")
    outbound.flush()
    byte = ctypes.c_ubyte.from_address(ring + 5 * a.words * kernels.WORD + 11)  # layer 1's row of block 1
    byte.value ^= 4
    inbound.take(ring, [9, 7, 5, 3], "damaged")
    byte.value ^= 4
    inbound.take(ring, [9, 7, 5, 3], "whole")
    inbound.flush()
    assert told == [("damaged", [7]), ("whole", [])]


@given(
    words=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=8),
    ring=st.binary(max_size=64),
    number=st.integers(0, 1 << 40),
    frame=st.binary(max_size=80),
    place=st.integers(0, 1 << 20),
    other=st.data(),
)
def test_a_segment_of_another_piece_or_place_is_not_what_is_expected(
    words: list[int], ring: bytes, number: int, frame: bytes, place: int, other: st.DataObject
) -> None:
    """Though its bytes are those that its checksum was made of."""
    told = kernels.expected(words, kernels.seed(ring, number, frame), place)
    mine = ring, number, frame, place
    theirs = other.draw(
        st.sampled_from(
            [
                (ring + b"\1" if len(ring) < 64 else b"", number, frame, place),
                (ring, number + other.draw(st.integers(1, 9)), frame, place),
                (ring, number, frame + b"\0", place),
                (ring, number, frame, place + other.draw(st.integers(1, 9))),
            ]
        )
    )
    assert kernels.expected(words, kernels.seed(*mine[:3]), place) == told
    assert kernels.expected(words, kernels.seed(*theirs[:3]), theirs[3]) != told


def test_a_piece_of_another_seed_is_broken_though_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (paged(caches("blocks", seed), monkeypatch) for seed in (1, 2))
    ring = a.device.allocate(a.piece_bytes(2))
    told: list[tuple[str, list[int]]] = []
    inbound: Inbound[str] = Inbound(b, 2, lambda tag, broken: told.append((tag, broken)))
    outbound: Outbound[None] = Outbound(a, 2, lambda tag: None)
    outbound.fill(ring, [0, 1], None, 7)
    outbound.flush()
    inbound.take(ring, [9, 5], "older", 8)
    inbound.take(ring, [9, 5], "its own", 7)
    inbound.flush()
    assert told == [("older", [9, 5]), ("its own", [])]


def test_what_is_done_is_told_in_order_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = paged(caches("blocks", 1), monkeypatch)
    ring = blocks.device.allocate(blocks.piece_bytes(1))
    told: list[int] = []
    outbound: Outbound[int] = Outbound(blocks, 1, told.append)
    for number in range(pipeline.DEPTH):
        outbound.fill(ring, [number], number)
    assert told == []
    outbound.fill(ring, [0], pipeline.DEPTH)
    assert (told, outbound.pending) == ([0], pipeline.DEPTH)
    outbound.next()
    assert told == [0, 1]
    outbound.flush()
    assert told == list(range(pipeline.DEPTH + 1))


def test_a_side_that_is_closed_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = paged(caches("blocks", 1), monkeypatch)
    ring = blocks.device.allocate(blocks.piece_bytes(1))
    outbound: Outbound[int] = Outbound(blocks, 2, lambda tag: None)
    inbound: Inbound[int] = Inbound(blocks, 2, lambda tag, broken: None)
    outbound.fill(ring, [1], 1)
    inbound.take(ring, [1], 1)
    outbound.close()
    inbound.close()
    assert isinstance(blocks.device, HostGpu)
    assert list(blocks.device.held) == [ring]


def test_bad_input_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = paged(caches("blocks", 1), monkeypatch)
    inbound: Inbound[int] = Inbound(blocks, 2, lambda tag, broken: None)
    for chosen, why in (
        ([], "a piece of 0 blocks"),
        ([1, 2, 3], "a piece of 3 blocks: at most 2"),
        ([BLOCKS], f"block {BLOCKS}: the cache has {BLOCKS}"),
        ([0, -1], "block -1"),
    ):
        with pytest.raises(ValueError, match=why):
            inbound.take(0, chosen, 1)
    with pytest.raises(ValueError, match="not on a GPU"):
        PagedBlocks([torch.zeros(4, 64)])
    with pytest.raises(ValueError, match="not a multiple of 16"):
        paged([torch.zeros(4, 3)], monkeypatch)
    with pytest.raises(ValueError, match=r"layers\[1\]: differs"):
        paged([torch.zeros(4, 64), torch.zeros(8, 64)], monkeypatch, 4)
