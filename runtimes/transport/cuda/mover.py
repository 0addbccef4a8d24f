"""Blocks of a GPU's paged cache on the ways of a channel: which ends a way gets (rings.py, straight.py), and pieces.

Written blocks are collected to pieces of some MiB, whichever blocks of the other side they are for. On each way
several pieces are in flight in both directions. Blocks that were written may not change before `flush`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Final

from runtimes.transport.channel import ChannelError, Frame, Landing, Way
from runtimes.transport.cuda.blocks import ALIGNED, PagedBlocks
from runtimes.transport.cuda.driver import CudaError
from runtimes.transport.cuda.halves import Giving, Lose, Runs, Taking
from runtimes.transport.cuda.kernels import BLOCKS
from runtimes.transport.cuda.rings import FromRing, ToRing
from runtimes.transport.cuda.straight import FromPages, ToPages
from runtimes.transport.ringed import Ringed, Room

PIECE: Final = 8 << 20  # bytes: below, the calls for a piece take longer than its copies
BETWEEN_GPUS: Final = 4  # times that: their link is so much faster
WINDOW: Final = 64 << 20  # bytes of a ring: enough pieces of that size to keep every stage busy
_IN_RING: Final = 4  # pieces, at least


class Mover:
    """Of one channel, on the side of `blocks`."""

    def __init__(self, blocks: PagedBlocks, lose: Lose) -> None:
        self._blocks = blocks
        self.block_bytes = blocks.block_bytes
        self._lose = lose
        self._lock = threading.Lock()
        self._out: dict[Way, Giving] = {}
        self._in: dict[Way, Taking] = {}
        self._pinned: dict[Way, dict[int, Room]] = {}
        self._closed = False

    def batch(self, way: Way) -> int:
        """Bytes of blocks that are best written in one go."""
        return self._most(way) * self._blocks.block_bytes

    def prepare(self, way: Way, *, out: bool) -> None:
        """What the first transfer would have to wait for, some tens of milliseconds: it is done behind the caller."""

        def make() -> None:
            with contextlib.suppress(CudaError, ChannelError, ValueError):  # the first transfer says it
                _ = self._giving(way) if out else self._taking(way)

        threading.Thread(target=make, name=f"kv-gpu-{way.rung}-prepares", daemon=True).start()

    def write(self, way: Way, transfer: int, runs: Runs) -> None:
        """One thread a way. Raises ValueError: this way can't carry them."""
        giving = self._out.get(way) or self._giving(way)
        giving.write(transfer, runs)

    def push(self, way: Way) -> None:
        """What was written is not kept back to become a larger piece."""
        giving = self._out.get(way)
        if giving is not None:
            giving.push()

    def flush(self, way: Way) -> None:
        """Until everything that was written has left the cache, and its frames are sent."""
        giving = self._out.get(way)
        if giving is not None:
            giving.flush()

    def take(self, way: Way, lane: int, frame: Frame, body: bytes, landing: Landing) -> None:
        self._taking(way).take(lane, frame, body, landing)

    def settle(self, way: Way) -> None:
        """Until everything that was taken has landed."""
        taking = self._in.get(way)
        if taking is not None:
            taking.settle()

    def close(self) -> None:
        """When nobody reads the streams any more. What was taken still lands."""
        with self._lock:
            self._closed = True
        ends: list[Taking | Giving] = [*self._in.values(), *self._out.values()]
        for end in ends:
            with contextlib.suppress(CudaError):  # a GPU that has failed fails again
                end.close()
        rooms = [room for rooms in self._pinned.values() for room in rooms.values() if not room.on_gpu]
        self._pinned.clear()
        with contextlib.suppress(CudaError):
            self._blocks.device.enter()
            for room in rooms:
                self._blocks.device.unpin(room.address)

    # --- inside

    def _giving(self, way: Way) -> Giving:
        with self._lock:
            self._raise_if_closed()
            if way not in self._out:
                most = self._most(way)
                self._out[way] = (
                    ToPages(self._blocks, way, most)
                    if way.pages
                    else ToRing(self._blocks, *self._lanes(way), most)
                )
            return self._out[way]

    def _taking(self, way: Way) -> Taking:
        with self._lock:
            self._raise_if_closed()
            if way not in self._in:
                try:
                    self._in[way] = (
                        FromPages(self._blocks, way, self._best(way), self._lose)
                        if way.pages
                        else FromRing(self._blocks, *self._lanes(way), self._best(way), self._lose)
                    )
                except ValueError as error:
                    raise ChannelError("memory", str(error)) from error
            return self._in[way]

    def _lanes(self, way: Way) -> tuple[Ringed, Sequence[Room]]:
        """With the lock held. Its rings, page-locked."""
        if not isinstance(way, Ringed):
            raise ValueError(f"{way.rung} does not carry blocks of a GPU")
        rooms = self._pinned.setdefault(way, {})
        device = self._blocks.device
        device.enter()
        for lane in range(len(way.streams)):
            room = way.room(lane)
            if lane not in rooms and not room.on_gpu:
                try:
                    device.pin(room.address, room.size)
                except CudaError as error:
                    way.why = f"{room.size} bytes can't be page-locked ({error}): raise `ulimit -l`"
                    raise ValueError(way.why) from error
            rooms[lane] = room
        return way, [rooms[lane] for lane in range(len(way.streams))]

    def _best(self, way: Way) -> int:
        """Blocks of the largest piece that either side makes."""
        size = PIECE * (BETWEEN_GPUS if isinstance(way, Ringed) and way.on_gpu else 1)
        return max(1, min(BLOCKS, round(size / self._blocks.block_bytes)))

    def _most(self, way: Way) -> int:
        """Of those that this side makes, so that a ring holds several."""
        straight = way.pages
        size = self._blocks.block_bytes if straight else self._blocks.piece_bytes(1) + ALIGNED
        if size > way.largest:
            raise ValueError(
                f"{way.rung} takes {way.largest} bytes at once, a block needs {size}: widen the window"
            )
        if straight:
            return max(1, min(self._best(way), way.largest // size))
        ring = 2 * way.largest
        return max(1, min(self._best(way), (ring // _IN_RING - ALIGNED) // (size - ALIGNED)))

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise ChannelError("closed", "closed on this side")
