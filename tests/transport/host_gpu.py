"""A stand-in for a GPU in host memory, for what is not about GPUs: streams that carry out everything at once.

Its kernels read and write real memory at the addresses that they are given, as the real ones do. What it can't show:
order between streams, speed, page-locking, and anything of the driver itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_uint, c_uint64, c_void_p
from typing import Any

import torch

from runtimes.transport.cuda import blocks as cuda_blocks
from runtimes.transport.cuda import kernels
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.driver import Device


class HostGpu(Device):
    """`held`: what was allocated and not freed yet; `seen`: how often a network card's writes were asked for."""

    flushable = True

    def __init__(self) -> None:
        self.ordinal, self.architecture = 0, 0
        self.held: dict[int, Any] = {}
        self.pinned: set[int] = set()
        self.seen = 0

    def enter(self) -> None:
        return

    def stream(self) -> c_void_p:
        return c_void_p(1)

    def event(self) -> c_void_p:
        return c_void_p(1)

    def destroy(self, streams: list[c_void_p], events: list[c_void_p]) -> None:
        return

    def load(self, image: bytes, names: tuple[str, ...]) -> list[c_void_p]:
        return [c_void_p(1 + number) for number in range(len(names))]

    def allocate(self, size: int) -> int:
        memory = (ctypes.c_ubyte * size)()
        address = ctypes.addressof(memory)
        self.held[address] = memory
        return address

    def free(self, address: int) -> None:
        del self.held[address]

    allocate_host, free_host = allocate, free

    def pin(self, address: int, size: int) -> None:
        self.pinned.add(address)

    def unpin(self, address: int) -> None:
        self.pinned.remove(address)

    def export(self, address: int) -> bytes:
        return address.to_bytes(64, "little")

    def open(self, handle: bytes) -> int:
        return int.from_bytes(handle, "little")

    def close(self, address: int) -> None:
        return

    def drain(self, stream: c_void_p) -> None:
        return

    def see_writes(self) -> None:
        self.seen += 1

    def zero(self, address: int, size: int, stream: c_void_p) -> None:
        ctypes.memset(address, 0, size)

    def copy(self, target: int, source: int, size: int, stream: c_void_p) -> None:
        ctypes.memmove(target, source, size)

    def record(self, event: c_void_p, stream: c_void_p) -> None:
        return

    def wait(self, stream: c_void_p, event: c_void_p) -> None:
        return

    def synchronize(self, event: c_void_p) -> None:
        return

    def launch(
        self,
        function: c_void_p,
        grid: tuple[int, int],
        threads: int,
        arguments: ctypes.Array[c_void_p],
        stream: c_void_p,
    ) -> None:
        def number(at: int, kind: Any = c_uint64) -> int:
            return int(kind.from_address(arguments[at]).value)

        bases = (c_uint64 * (1 << 16)).from_address(number(0))
        buffer, stride, words, segments, count = (
            number(1),
            number(2),
            number(3, c_uint),
            number(4, c_uint),
            number(5, c_uint),
        )
        ids = (c_uint * kernels.BLOCKS).from_address(arguments[6] or 0)
        assert grid[1] == segments
        for row in range(grid[0]):
            place = bases[row // count] + ids[row % count] * stride * 8
            if function.value == 3:
                total = c_uint64.from_address(buffer + row % count * 8)
                for segment, found in enumerate(_sums(place, words)):
                    weight = (row // count * segments + segment) * kernels.STEP | 1
                    total.value += found * weight
                continue
            at = buffer + row * words * 8
            sums = buffer + (grid[0] * words + row * segments) * 8
            if function.value == 1:
                ctypes.memmove(at, place, words * 8)
                ctypes.memmove(
                    sums, (c_uint64 * segments)(*_expected(at, words, number(7), row)), segments * 8
                )
            else:
                ctypes.memmove(place, at, words * 8)
                if list((c_uint64 * segments).from_address(sums)) != _expected(at, words, number(7), row):
                    ctypes.memset(number(8) + row % count, 1, 1)


def _segments(at: int, words: int) -> list[list[int]]:
    found = list((c_uint64 * words).from_address(at))
    return [found[start : start + kernels.SEGMENT] for start in range(0, words, kernels.SEGMENT)]


def _sums(at: int, words: int) -> list[int]:
    return [kernels.checksum(segment) for segment in _segments(at, words)]


def _expected(at: int, words: int, seed: int, row: int) -> list[int]:
    found = _segments(at, words)
    return [kernels.expected(each, seed, row * len(found) + place) for place, each in enumerate(found)]


def paged(layers: Sequence[torch.Tensor], monkeypatch: Any, blocks: int | None = None) -> PagedBlocks:
    """Of tensors in host memory."""
    monkeypatch.setattr(cuda_blocks, "compile_for", lambda source, architecture: b"")
    return PagedBlocks(layers, blocks, HostGpu())
