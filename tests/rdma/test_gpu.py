"""Blocks of a GPU's cache by staged RDMA: gathered into a registered ring, over the wire, and scattered; the GPU is a
stand-in in host memory, the verbs are real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from runtimes.transport.channel import Extent, Pages
from runtimes.transport.cuda import mover
from tests.rdma.channels import WAIT_S, decode, prefill
from tests.rdma.machine import Nics
from tests.transport.host_gpu import HostGpu, paged
from tests.transport.test_gpu_channel import BLOCKS, Ear, cache, shuffled


class Pair:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mover, "PIECE", 3 * 2048)
        self.source, self.target = cache(1), cache(2)
        self.a, self.b = (paged(layers, monkeypatch, BLOCKS) for layers in (self.source, self.target))
        self.listener, accepted = prefill()
        self.decode = decode(self.listener.addr, ("rdma", "rdma-staged"), window=1 << 16)
        self.prefill = accepted.get(timeout=WAIT_S)
        self.at_decode, self.at_prefill = Ear(self.b), Ear(self.a)
        self.decode.start(self.at_decode, self.at_decode)
        self.prefill.start(self.at_prefill, None)
        self.decode.expose([Extent(0, 0, True, self.b)])
        self.prefill.use([Extent(0, 0, True, self.a)])

    def close(self) -> None:
        self.decode.close()
        self.prefill.close()
        self.listener.close()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    made = Pair(monkeypatch)
    yield made
    made.close()


def test_scattered_blocks_cross_the_wire_in_pieces(pair: Pair, nics: Nics) -> None:
    assert pair.decode.rungs == pair.prefill.rungs == ("rdma-staged",)
    assert any(why.startswith("rdma: it does not carry the blocks") for why in pair.prefill.passed)
    before = nics.bytes_sent(nics.far)
    for transfer in range(6):
        pairs = shuffled(transfer)
        for source, target in pairs:
            pair.prefill.write(transfer, 0, target, [Pages(source, 1, pair.a.block_bytes)])
        pair.prefill.finish(transfer, BLOCKS)
        assert pair.at_decode.until_done() == ([target for _, target in pairs], [])
        for s, t in pairs:
            assert all(torch.equal(x[s], y[t]) for x, y in zip(pair.source, pair.target, strict=True))
    assert nics.bytes_sent(nics.far) - before >= 6 * BLOCKS * pair.a.block_bytes


def test_a_ring_that_was_page_locked_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    pair.prefill.write(1, 0, 1, [Pages(2, 1, pair.a.block_bytes)])
    pair.prefill.finish(1, 1)
    assert pair.at_decode.until_done() == ([1], [])
    pair.close()
    for blocks in (pair.a, pair.b):
        assert isinstance(blocks.device, HostGpu)
        assert not blocks.device.pinned
