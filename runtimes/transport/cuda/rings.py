"""Pieces through the ring that a way begins with: gathered into it, and scattered from it at the receiver.

A piece's frame names the receiver's blocks; their checksums travel with the bytes. One is gathered while others are
copied, travel, or are checked and scattered.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from runtimes.transport.channel import RUNG_NAMES, WRITE, Frame
from runtimes.transport.credit import give_back
from runtimes.transport.cuda.blocks import ALIGNED, PagedBlocks
from runtimes.transport.cuda.halves import Giving, Lose, Piece, Taking
from runtimes.transport.cuda.pipeline import Inbound, Outbound
from runtimes.transport.ringed import Ringed, Room


class ToRing(Giving):
    def __init__(self, blocks: PagedBlocks, way: Ringed, rooms: Sequence[Room], most: int) -> None:
        self._blocks, self._way, self._rooms = blocks, way, rooms
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
        tag = lane, frame, struct.pack(f"<{len(targets)}I", *targets)
        self._guarded(lambda: outbound.fill(self._rooms[lane].address + offset, sources, tag))

    def _filled(self, tag: tuple[int, Frame, bytes]) -> None:
        self._way.post(*tag)


class FromRing(Taking):
    kind = WRITE

    def __init__(
        self, blocks: PagedBlocks, way: Ringed, rooms: Sequence[Room], most: int, lose: Lose
    ) -> None:
        self._way, self._rooms = way, rooms
        self._inbound: Inbound[Piece] = Inbound(blocks, most, self._told, on_gpu=rooms[0].on_gpu)
        super().__init__(self._inbound, blocks, most, way.rung, lose)

    def _size(self, count: int) -> int:
        return _rounded(self._blocks.piece_bytes(count))

    def _read(self, frame: Frame, body: bytes) -> tuple[Sequence[int], Sequence[int]]:
        return struct.unpack(f"<{frame.blocks}I", body), ()

    def _arrive(self, lane: int, frame: Frame) -> None:
        self._way.arrive(lane, frame)

    def _begin(self, piece: Piece) -> None:
        address = self._rooms[piece.lane].address + piece.frame.offset
        self._inbound.take(address, piece.targets, piece)

    def _free_room(self, lane: int, frame: Frame) -> None:
        give_back(self._way.streams[lane], frame)


def _rounded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
