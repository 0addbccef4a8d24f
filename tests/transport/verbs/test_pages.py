"""Work requests for blocks of paged caches: every layout, byte for byte, and as few of them as the layout lets be.

A copy in host memory plays the network card.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.straight import runs
from runtimes.transport.verbs.memory import Region
from runtimes.transport.verbs.pages import Lying, Sheet, differs, requests, sheet, spans
from runtimes.transport.verbs.work import Piece
from tests.transport.host_gpu import paged

BLOCKS, LAYERS = 24, 3
LAYOUTS = (
    "blocks",
    "keys and values apart",
    "blocks outside",
    "heads before tokens",
    "smaller kernel blocks",
)
_OFFSET = 0x200  # where a dma-buf's layer may begin


def laid_out(layout: str, seed: int, blocks: int, device: str = "cpu") -> list[torch.Tensor]:
    """Layers as attention backends have them; a block of one layer has 1 KiB."""
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int) -> torch.Tensor:
        return torch.randint(-(1 << 62), 1 << 62, shape, generator=generator).to(device)

    if layout == "keys and values apart":
        return [new(2, blocks, 4, 2, 8) for _ in range(LAYERS)]
    if layout == "blocks outside":
        together = new(blocks, LAYERS, 2, 2, 4, 8)
        return [together[:, layer] for layer in range(LAYERS)]
    if layout == "heads before tokens":
        return [new(blocks, 2, 2, 4, 8).permute(0, 1, 3, 2, 4) for _ in range(LAYERS)]
    if layout == "smaller kernel blocks":
        return [new(2, blocks * 2, 2, 2, 8) for _ in range(LAYERS)]
    return [new(blocks, 2, 4, 2, 8) for _ in range(LAYERS)]


def block_of(layer: torch.Tensor, block: int, blocks: int) -> torch.Tensor:
    axis = 0 if layer.shape[0] % blocks == 0 else 1
    several = layer.shape[axis] // blocks
    return layer.narrow(axis, block * several, several)


class Side:
    """A cache as both sides see it; `shift`: what a registration's addresses are counted from."""

    def __init__(self, found: PagedBlocks, shift: int) -> None:
        memory = found.memory()
        self.sheet = sheet(memory, found.addresses, (found.part_bytes, found.step, found.blocks))
        self.regions = []
        self.starts = dict[int, int]()  # by key
        for number, (start, size) in enumerate(memory):
            key = SimpleNamespace(local=shift + number, remote=2 * shift + number)
            known: Any = SimpleNamespace(key=key, close=lambda: None)
            address = start if not shift % 2 else _OFFSET
            self.regions.append(Region(known, address, size, None, None))
            self.starts |= {key.local: start - address, key.remote: start - address}
        self.lying = [Lying(region.address, region.key.remote, region.length) for region in self.regions]


def carry(pieces: Sequence[Piece], a: Side, b: Side) -> None:
    for piece in pieces:
        source, target = piece.local + a.starts[piece.lkey], piece.remote + b.starts[piece.rkey]
        ctypes.memmove(target, source, piece.size)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shift", [1000, 1001])
def test_every_byte_of_the_chosen_blocks_and_none_of_another(
    layout: str, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = (laid_out(layout, seed, BLOCKS) for seed in (1, 2))
    a, b = (Side(paged(layers, monkeypatch, BLOCKS), shift) for layers in (source, target))
    block = spans(a.sheet, a.regions, b.sheet, b.lying)
    chosen = random.Random(layout)
    for count in (1, 7, BLOCKS):
        pairs = list(
            zip(chosen.sample(range(BLOCKS), count), chosen.sample(range(BLOCKS), count), strict=True)
        )
        expected = [layer.clone() for layer in target]
        for s, t in pairs:
            for x, y in zip(source, expected, strict=True):
                block_of(y, t, BLOCKS).copy_(block_of(x, s, BLOCKS))
        carry(requests(block, a.sheet.stride, b.sheet.stride, runs(pairs)), a, b)
        assert all(map(torch.equal, expected, target))


@pytest.mark.parametrize(
    ("layout", "scattered", "neighbours"),
    [
        ("blocks", LAYERS, LAYERS),
        ("keys and values apart", 2 * LAYERS, 2 * LAYERS),
        ("blocks outside", 1, 1),
        ("heads before tokens", LAYERS, LAYERS),
    ],
)
def test_what_lies_together_on_both_sides_is_one_request(
    layout: str, scattered: int, neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (Side(paged(laid_out(layout, seed, BLOCKS), monkeypatch, BLOCKS), 1000) for seed in (1, 2))
    block = spans(a.sheet, a.regions, b.sheet, b.lying)
    stride = a.sheet.stride
    assert len(requests(block, stride, stride, [(3, 9, 1)])) == scattered
    assert len(requests(block, stride, stride, [(3, 9, 5)])) == neighbours
    assert len(requests(block, stride, stride, [(3, 9, 1), (5, 11, 1)])) == 2 * scattered


def test_neighbours_on_one_side_only_are_requests_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers of a block lie together here, each by itself over there."""
    source, target = laid_out("blocks outside", 1, BLOCKS), laid_out("heads before tokens", 2, BLOCKS)
    a, b = (Side(paged(layers, monkeypatch, BLOCKS), 1000) for layers in (source, target))
    assert differs(a.sheet, b.sheet, b.lying) == ""
    block = spans(a.sheet, a.regions, b.sheet, b.lying)
    pieces = requests(block, a.sheet.stride, b.sheet.stride, [(3, 9, 2)])
    assert len(pieces) == 2 * LAYERS
    carry(pieces, a, b)
    for x, y in zip(source, target, strict=True):
        theirs = y.permute(0, 1, 3, 2, 4) if y.shape[2] != x.shape[2] else y
        assert torch.equal(x[3:5], theirs[9:11])


def test_memory_is_registered_by_layer_or_all_layers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = laid_out("keys and values apart", 1, BLOCKS)
    found = paged(layers, monkeypatch, BLOCKS)
    assert sorted(found.memory()) == sorted((layer.data_ptr(), layer.nbytes) for layer in layers)
    together = laid_out("blocks outside", 1, BLOCKS)
    found = paged(together, monkeypatch, BLOCKS)
    assert found.memory() == [(together[0].data_ptr(), LAYERS * together[0].nbytes)]


SHEET = Sheet([(0, 0), (0, 512)], 512, 1024, 4)


@pytest.mark.parametrize(
    ("theirs", "lying", "why"),
    [
        (SHEET, [Lying(0, 1, 4096)], ""),
        (None, [Lying(0, 1, 4096)], "the other's is not"),
        (Sheet([(0, 0)], 1024, 1024, 4), [Lying(0, 1, 4096)], "2 parts of 512 bytes here, 1 of 1024 there"),
        (SHEET, [Lying(0, 1, 4095)], "beyond its memory"),
        (Sheet([(0, 0), (1, 512)], 512, 1024, 4), [Lying(0, 1, 4096)], "beyond its memory"),
        (Sheet([(0, 0), (0, -1)], 512, 1024, 4), [Lying(0, 1, 4096)], "beyond its memory"),
        (Sheet([(0, 0), (0, 512)], 512, -1024, 4), [Lying(0, 1, 4096)], "beyond its memory"),
        (Sheet([(0, 0), (0, 512)], 512, 1024, 0), [Lying(0, 1, 4096)], "beyond its memory"),
    ],
)
def test_what_a_peer_tells_is_looked_at_before_anything_is_written(
    theirs: Sheet | None, lying: list[Lying], why: str
) -> None:
    said = differs(SHEET, theirs, lying)
    assert (why in said) if why else not said
