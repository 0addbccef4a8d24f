"""The two ends of a way for blocks of a GPU's cache, whatever becomes of a piece: collected here, taken there.

Each drives a side of pipeline.py. What is given to the GPU and what is said of a piece are the kinds' own.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar, NamedTuple, cast

from runtimes.transport.channel import ChannelError, Frame, Landing, PieceLanding, Reason
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.driver import CudaError
from runtimes.transport.cuda.pipeline import DEPTH, Side

Lose = Callable[[ChannelError], None]
#: Neighbours on both sides: the first here, the first over there, how many.
Runs = Sequence[tuple[int, int, int]]


class Giving(ABC):
    """One way out."""

    def __init__(self, side: Side[Any], most: int) -> None:
        self._side, self._most = side, most
        self._lock = threading.Lock()
        self._closed = False
        self._transfer = 0
        self._sources: list[int] = []
        self._targets: list[int] = []

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
            self._guarded(self._side.flush)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._side.close()

    def _begin(self) -> None:
        """With the lock held: the next piece."""
        sources, self._sources = self._sources[: self._most], self._sources[self._most :]
        targets, self._targets = self._targets[: self._most], self._targets[self._most :]
        if not sources:
            return
        if self._closed:
            raise ChannelError("closed", "closed on this side")
        self._give(sources, targets)

    @abstractmethod
    def _give(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """To the GPU, of `_transfer`."""

    @staticmethod
    def _guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except CudaError as error:
            raise ChannelError("device", str(error)) from error


class Piece(NamedTuple):
    """One that was taken. `sums`: what its frame says that the blocks sum up to, where it does; `seed`: its own."""

    lane: int
    frame: Frame
    targets: Sequence[int]
    landing: PieceLanding
    sums: Sequence[int] = ()
    seed: int = 0


class Taking(ABC):
    """One way in. A thread waits for the GPU, so that the stream's reader does not."""

    kind: ClassVar[int]  # of its frames

    def __init__(self, side: Side[Piece], blocks: PagedBlocks, most: int, name: str, lose: Lose) -> None:
        self._side, self._blocks, self._most, self._lose = side, blocks, most, lose
        self._lock = threading.Lock()  # held by a reader while it takes, or waits for what was taken
        self._free = threading.Semaphore(DEPTH)
        self._begun: SimpleQueue[bool] = SimpleQueue()
        self._failed: ChannelError | None = None
        self._thread = threading.Thread(target=self._finish, name=f"kv-gpu-{name}", daemon=True)
        self._thread.start()

    def take(self, lane: int, frame: Frame, body: bytes, landing: Landing) -> None:
        count = frame.blocks
        if frame.kind != self.kind or not 0 < count <= self._most or frame.size != self._size(count):
            raise ChannelError(
                "protocol", f"{count} blocks in {frame.size} bytes, by a frame of {frame.kind}"
            )
        targets, sums = self._read(frame, body)
        if len(set(targets)) != count or max(targets) >= self._blocks.blocks:
            raise ChannelError("protocol", f"blocks {targets} of {self._blocks.blocks}")
        seed = self._arrive(lane, frame, body)
        pieces = cast(PieceLanding, landing)  # as of whoever has a cache on a GPU
        wanted = pieces.expects(frame, targets)
        with self._lock:
            if wanted:
                self._wait(1)
                try:
                    self._begin(Piece(lane, frame, targets, pieces, sums, seed))
                except CudaError as error:
                    raise ChannelError("device", str(error)) from error
                self._begun.put(True)
            else:
                self._settle()  # what is given back comes in order
                self._free_room(lane, frame)

    def settle(self) -> None:
        with self._lock:
            self._settle()

    def close(self) -> None:
        self._begun.put(False)
        self._thread.join()
        self._side.close()

    @abstractmethod
    def _size(self, count: int) -> int:
        """What a frame says of so many blocks."""

    @abstractmethod
    def _read(self, frame: Frame, body: bytes) -> tuple[Sequence[int], Sequence[int]]:
        """The blocks, and their sums if they are told."""

    @abstractmethod
    def _arrive(self, lane: int, frame: Frame, body: bytes) -> int:
        """The bytes are here when it returns; the piece's seed. Called once for each piece, in their order."""

    @abstractmethod
    def _begin(self, piece: Piece) -> None:
        """To the GPU."""

    def _free_room(self, lane: int, frame: Frame) -> None:
        """Nobody reads it there any more."""
        return

    def _told(self, piece: Piece, broken: Sequence[int]) -> None:
        self._free_room(piece.lane, piece.frame)
        piece.landing.arrived(piece.frame, piece.targets, broken)

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
                self._side.next()
                self._free.release()
        except (CudaError, ChannelError, ValueError) as error:
            reason: Reason = "device" if isinstance(error, CudaError) else "protocol"
            self._failed = error if isinstance(error, ChannelError) else ChannelError(reason, str(error))
            self._lose(self._failed)
            self._free.release(2 * DEPTH)  # whoever waits hears of it
