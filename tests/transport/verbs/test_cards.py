"""What the environment asks for, and what is said where there is no RDMA at all."""

from __future__ import annotations

import builtins
import ctypes
import mmap
from typing import Any

import pytest

from runtimes.transport.channel import ChannelError, Extent
from runtimes.transport.verbs import cards, memory
from runtimes.transport.verbs.choice import Wanted


def test_the_environment_names_devices_and_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_RDMA_DEVICES", " mlx5_1, mlx5_0:2,")
    monkeypatch.setenv("GALAXY_RDMA_NETWORK", "10.8.0.0/16")
    assert cards.wanted() == Wanted(("mlx5_1", "mlx5_0:2"), "10.8.0.0/16")
    monkeypatch.setenv("GALAXY_RDMA_NETWORK", "10.8.0.0/99")
    with pytest.raises(ChannelError, match=r"GALAXY_RDMA_NETWORK: .*; write it as 10\.8\.0\.0/16"):
        cards.wanted()


def test_without_pyverbs_there_is_no_device_and_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pyverbs" or name.endswith("native") or "native" in (rest[2] or ()):
            raise ModuleNotFoundError("No module named 'pyverbs'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ChannelError, match="install python3-pyverbs") as caught:
        cards.find()
    assert caught.value.reason == "device"


class _Card:
    """Registers nothing, and looks at how many pages the memory has by then."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.key = None

    def register(self, address: int, length: int, *, remote: bool) -> _Card:
        self.seen.append(_resident(address, length))
        return self

    def close(self) -> None:
        self.seen.append(-1)


def _resident(address: int, length: int) -> int:
    """Pages."""
    found = (ctypes.c_ubyte * (length // mmap.PAGESIZE))()
    assert not ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), found)
    return sum(page & 1 for page in found)


def test_memory_has_its_pages_before_it_is_registered_and_nobody_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages are given with the interpreter's lock released, and a cache is as large as the machine."""
    buffer = mmap.mmap(-1, 64 * mmap.PAGESIZE)
    start = ctypes.c_char.from_buffer(buffer)
    extent = Extent(ctypes.addressof(start), len(buffer), owner=buffer)
    assert _resident(extent.address, extent.size) == 0
    card, real, free = _Card(), memory.populate, []

    def populate(address: int, length: int) -> None:
        free.append(not cards._cards.lock.locked())
        real(address, length)

    monkeypatch.setattr(memory, "populate", populate)
    regions = [cards.share(card, extent, remote=True) for _ in range(2)]  # type: ignore[arg-type]
    assert card.seen == [64]
    assert free == [True]
    for region in regions:
        cards.unshare(card, region)  # type: ignore[arg-type]
    assert card.seen == [64, -1]
    del start
    buffer.close()
