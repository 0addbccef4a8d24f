"""How GPU memory is registered: which way is taken, and what is said when there is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtimes.transport.channel import ChannelError, Extent
from runtimes.transport.verbs import gpu

LAYER = Extent(0x7F00_0000_1200, 10_000, gpu=True)


class Card:
    """Of a device that takes dma-bufs, or doesn't."""

    def __init__(self, dmabuf: bool = True) -> None:
        self._dmabuf = dmabuf
        self.asked: list[tuple[Any, ...]] = []

    def register(self, address: int, length: int, *, remote: bool) -> Any:
        self.asked.append(("plain", address, length, remote))
        return self

    def register_dmabuf(self, descriptor: int, offset: int, length: int, *, remote: bool) -> Any:
        os.fstat(descriptor)  # still open
        if not self._dmabuf:
            raise ChannelError("memory", "the device takes no dma-buf")
        self.asked.append(("dma-buf", offset, length, remote))
        return self

    key = None


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What the driver was asked for, and the descriptors that it gave."""
    given: list[tuple[int, int, int]] = []

    def export(address: int, length: int) -> int:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        given.append((address, length, descriptor))
        return descriptor

    monkeypatch.setattr(gpu, "export", export)
    return given


def loaded(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir()
    monkeypatch.setattr(gpu, "_LOADED", folder)


@pytest.mark.parametrize("remote", [True, False])
def test_whole_pages_are_exported_and_the_descriptor_is_closed(
    exported: list[tuple[int, int, int]], remote: bool
) -> None:
    card = Card()
    region = gpu.register(card, LAYER, remote=remote)  # type: ignore[arg-type]
    assert card.asked == [("dma-buf", 0x200, 10_000, remote)]
    ((address, length, descriptor),) = exported
    assert (address, length) == (0x7F00_0000_1000, 3 * 4096)
    assert (region.address, region.length, region.view) == (0x200, 10_000, None)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_nvidia_peermem_is_taken_where_dma_bufs_are_not(
    exported: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded(monkeypatch, tmp_path, "nvidia_peermem")
    card = Card(dmabuf=False)
    region = gpu.register(card, LAYER, remote=False)  # type: ignore[arg-type]
    assert card.asked == [("plain", LAYER.address, 10_000, False)]
    assert region.address == LAYER.address
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(exported[0][2])


def test_both_reasons_are_said_when_neither_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded(monkeypatch, tmp_path, "nvidia")

    def none(address: int, length: int) -> int:
        raise ChannelError("memory", "no dma-buf: NVIDIA's driver exports none (CUDA_ERROR_NOT_SUPPORTED)")

    monkeypatch.setattr(gpu, "export", none)
    with pytest.raises(ChannelError, match=r"NOT_SUPPORTED\); nvidia_peermem is not loaded") as caught:
        gpu.register(Card(), LAYER, remote=True)  # type: ignore[arg-type]
    assert caught.value.reason == "memory"
