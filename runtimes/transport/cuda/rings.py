"""Pieces through the ring that a way begins with: gathered into it, and scattered from it at the receiver.

A piece's frame names the receiver's blocks; their checksums travel with the bytes, under a seed that both sides make
of the ring's word, the piece's number on its lane and its frame: what lies in the ring from anything else is broken.
One is gathered while others are copied, travel, or are checked and scattered.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from runtimes.transport.channel import FRAME, RUNG_NAMES, WRITE, Frame
from runtimes.transport.credit import give_back
from runtimes.transport.cuda import kernels
from runtimes.transport.cuda.blocks import ALIGNED, PagedBlocks
from runtimes.transport.cuda.halves import Giving, Lose, Piece, Taking
from runtimes.transport.cuda.pipeline import Inbound, Outbound
from runtimes.transport.ringed import Ringed, Room


class Seeds:
    """Of the pieces of one way in one direction, in the order in which its lanes carry them."""

    def __init__(self, way: Ringed) -> None:
        self._way = way
        self._counts = [0] * len(way.streams)

    def next(self, lane: int, frame: Frame, body: bytes) -> int:
        number = self._counts[lane]
        self._counts[lane] += 1
        return kernels.seed(self._way.word, number, FRAME.pack(*frame) + body)


class ToRing(Giving):
    def __init__(self, blocks: PagedBlocks, way: Ringed, rooms: Sequence[Room], most: int) -> None:
        self._blocks, self._way, self._rooms = blocks, way, rooms
        self._seeds = Seeds(way)
        self._outbound: Outbound[tuple[int, Frame, bytes]] = Outbound(
            blocks, most, self._filled, on_gpu=rooms[0].on_gpu
        )
        super().__init__(self._outbound, most)

    def _give(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        way, outbound = self._way, self._outbound
        size = _rounded(self._blocks.piece_bytes(len(sources)))
        while outbound.pending and way.free() < size:  # credit for what has not been sent will not come
            self._guarded(outbound.next)
        lane, offset = way.reserve(size)
        number = RUNG_NAMES.index(way.rung)
        frame = Frame(WRITE, number, 0, self._transfer, len(targets), targets[0], size, offset)
        body = struct.pack(f"<{len(targets)}I", *targets)
        seed = self._seeds.next(lane, frame, body)
        address, tag = self._rooms[lane].address + offset, (lane, frame, body)
        self._guarded(lambda: outbound.fill(address, sources, tag, seed))

    def _filled(self, tag: tuple[int, Frame, bytes]) -> None:
        self._way.post(*tag)


class FromRing(Taking):
    kind = WRITE

    def __init__(
        self, blocks: PagedBlocks, way: Ringed, rooms: Sequence[Room], most: int, lose: Lose
    ) -> None:
        self._way, self._rooms = way, rooms
        self._seeds = Seeds(way)
        self._inbound: Inbound[Piece] = Inbound(blocks, most, self._told, on_gpu=rooms[0].on_gpu)
        super().__init__(self._inbound, blocks, most, way.rung, lose)

    def _size(self, count: int) -> int:
        return _rounded(self._blocks.piece_bytes(count))

    def _read(self, frame: Frame, body: bytes) -> tuple[Sequence[int], Sequence[int]]:
        return struct.unpack(f"<{frame.blocks}I", body), ()

    def _arrive(self, lane: int, frame: Frame, body: bytes) -> int:
        self._way.arrive(lane, frame)
        return self._seeds.next(lane, frame, body)

    def _begin(self, piece: Piece) -> None:
        address = self._rooms[piece.lane].address + piece.frame.offset
        self._inbound.take(address, piece.targets, piece, piece.seed)

    def _free_room(self, lane: int, frame: Frame) -> None:
        give_back(self._way.streams[lane], frame)


def _rounded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
