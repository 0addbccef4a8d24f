"""Blocks of a GPU's paged cache on the ways of a channel: gathered into the ring that a way begins with, and back.

Written blocks are collected to pieces of some MiB, whichever blocks of the other side they are for; a piece's frame
names these instead of checksums, which travel with the bytes. On each way several pieces are in flight in both
directions: one is gathered while others are copied, travel, or are checked and scattered. Blocks that were written
may not change before `flush`.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final, NamedTuple, cast

from runtimes.transport.channel import (
    RUNG_NAMES,
    WRITE,
    ChannelError,
    Frame,
    Landing,
    PieceLanding,
    Reason,
    Way,
)
from runtimes.transport.credit import give_back
from runtimes.transport.cuda.blocks import ALIGNED, PagedBlocks
from runtimes.transport.cuda.driver import CudaError
from runtimes.transport.cuda.kernels import BLOCKS
from runtimes.transport.cuda.pipeline import DEPTH, Inbound, Outbound
from runtimes.transport.ringed import Ringed, Room

PIECE: Final = 8 << 20  # bytes: below, the calls for a piece take longer than its copies
BETWEEN_GPUS: Final = 4  # times that: their link is so much faster
WINDOW: Final = 64 << 20  # bytes of a ring: enough pieces of that size to keep every stage busy
_IN_RING: Final = 4  # pieces, at least

Lose = Callable[[ChannelError], None]
#: Neighbours on both sides: the first here, the first over there, how many.
Runs = Sequence[tuple[int, int, int]]


class _Piece(NamedTuple):
    """One that was taken."""

    lane: int
    frame: Frame
    targets: Sequence[int]
    landing: PieceLanding


class Mover:
    """Of one channel, on the side of `blocks`."""

    def __init__(self, blocks: PagedBlocks, lose: Lose) -> None:
        self._blocks = blocks
        self.block_bytes = blocks.block_bytes
        self._lose = lose
        self._lock = threading.Lock()
        self._out: dict[Way, _Giving] = {}
        self._in: dict[Way, _Taking] = {}
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
        ends: list[_Taking | _Giving] = [*self._in.values(), *self._out.values()]
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

    def _giving(self, way: Way) -> _Giving:
        with self._lock:
            self._raise_if_closed()
            if way not in self._out:
                self._out[way] = _Giving(self._blocks, *self._lanes(way), self._most(way))
            return self._out[way]

    def _taking(self, way: Way) -> _Taking:
        with self._lock:
            self._raise_if_closed()
            if way not in self._in:
                try:
                    self._in[way] = _Taking(self._blocks, *self._lanes(way), self._best(way), self._lose)
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
        size = self._blocks.piece_bytes(1)
        if size + ALIGNED > way.largest:
            raise ValueError(
                f"{way.rung} takes {way.largest} bytes at once, a block has {size}: widen the window"
            )
        ring = 2 * way.largest
        return max(1, min(self._best(way), (ring // _IN_RING - ALIGNED) // size))

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise ChannelError("closed", "closed on this side")


class _Giving:
    """One way out."""

    def __init__(self, blocks: PagedBlocks, way: Ringed, rooms: Sequence[Room], most: int) -> None:
        self._blocks, self._way, self._rooms, self._most = blocks, way, rooms, most
        self._lock = threading.Lock()
        self._closed = False
        self._transfer = 0
        self._sources: list[int] = []
        self._targets: list[int] = []
        self._outbound: Outbound[tuple[int, Frame, bytes]] = Outbound(
            blocks, most, self._filled, on_gpu=rooms[0].on_gpu
        )

    def write(self, transfer: int, runs: Runs) -> None:
        with self._lock:
            if self._transfer != transfer:
                self._begin()
                self._transfer = transfer
            for source, target, count in runs:
                self._sources += range(source, source + count)
                self._targets += range(target, target + count)
            while len(self._sources) >= self._most:
                self._begin()

    def push(self) -> None:
        with self._lock:
            self._begin()

    def flush(self) -> None:
        with self._lock:
            self._begin()
            self._guarded(self._outbound.flush)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._outbound.close()

    def _begin(self) -> None:
        """With the lock held: the next piece."""
        sources, self._sources = self._sources[: self._most], self._sources[self._most :]
        targets, self._targets = self._targets[: self._most], self._targets[self._most :]
        if not sources:
            return
        if self._closed:
            raise ChannelError("closed", "closed on this side")
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

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except CudaError as error:
            raise ChannelError("device", str(error)) from error


class _Taking:
    """One way in. A thread waits for the GPU, so that the stream's reader does not."""

    def __init__(
        self, blocks: PagedBlocks, way: Ringed, rooms: Sequence[Room], most: int, lose: Lose
    ) -> None:
        self._blocks, self._way, self._rooms, self._most = blocks, way, rooms, most
        self._lose = lose
        self._lock = threading.Lock()  # held by a reader while it takes, or waits for what was taken
        self._free = threading.Semaphore(DEPTH)
        self._begun: SimpleQueue[bool] = SimpleQueue()
        self._failed: ChannelError | None = None
        self._inbound: Inbound[_Piece] = Inbound(blocks, most, self._landed, on_gpu=rooms[0].on_gpu)
        self._thread = threading.Thread(target=self._finish, name=f"kv-gpu-{way.rung}", daemon=True)
        self._thread.start()

    def take(self, lane: int, frame: Frame, body: bytes, landing: Landing) -> None:
        count = frame.blocks
        if not 0 < count <= self._most or frame.size != _rounded(self._blocks.piece_bytes(count)):
            raise ChannelError("protocol", f"{count} blocks in {frame.size} bytes")
        targets = struct.unpack(f"<{count}I", body)
        if len(set(targets)) != count or max(targets) >= self._blocks.blocks:
            raise ChannelError("protocol", f"blocks {targets} of {self._blocks.blocks}")
        self._way.arrive(lane, frame)
        pieces = cast(PieceLanding, landing)  # as of whoever has a cache on a GPU
        wanted = pieces.expects(frame, targets)
        with self._lock:
            if wanted:
                self._wait(1)
                address = self._rooms[lane].address + frame.offset
                try:
                    self._inbound.take(address, targets, _Piece(lane, frame, targets, pieces))
                except CudaError as error:
                    raise ChannelError("device", str(error)) from error
                self._begun.put(True)
            else:
                self._settle()  # credit comes back in order
                give_back(self._way.streams[lane], frame)

    def settle(self) -> None:
        with self._lock:
            self._settle()

    def close(self) -> None:
        self._begun.put(False)
        self._thread.join()
        self._inbound.close()

    def _settle(self) -> None:
        self._wait(DEPTH)
        self._free.release(DEPTH)

    def _wait(self, pieces: int) -> None:
        """Until so many more may begin. With the lock held: only one thread collects them."""
        for _ in range(pieces):
            self._free.acquire()
            if self._failed is not None:
                raise self._failed

    def _finish(self) -> None:
        try:
            while self._begun.get():
                self._inbound.next()
                self._free.release()
        except (CudaError, ChannelError, ValueError) as error:
            reason: Reason = "device" if isinstance(error, CudaError) else "protocol"
            self._failed = error if isinstance(error, ChannelError) else ChannelError(reason, str(error))
            self._lose(self._failed)
            self._free.release(2 * DEPTH)  # whoever waits hears of it

    def _landed(self, piece: _Piece, broken: list[int]) -> None:
        give_back(self._way.streams[piece.lane], piece.frame)
        piece.landing.arrived(piece.frame, piece.targets, broken)


def _rounded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
