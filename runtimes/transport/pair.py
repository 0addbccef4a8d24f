"""A channel: the connections of one pair of ranks, with a reader thread each, and the rungs that blocks may take.

Either side may send control messages; blocks are written by `write` on one side and land, checked, on the other.
Bytes under way are bounded by what the rung can hold. Losing any connection loses the channel, and its owner is told
once, when the peer can't write here any more. Never chooses a rung when it is told one, never retries: these are the
owner's decisions.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

from runtimes.transport.channel import (
    CREDIT,
    DONE,
    EITHER_WAY,
    NOTE,
    PAGES,
    PLACE,
    ROWS,
    RUNG_NAMES,
    WRITE,
    ChannelError,
    Extent,
    Frame,
    Landing,
    Link,
    Pages,
    Port,
    Receiver,
    Row,
    Rung,
    Stream,
    Way,
)
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.mover import Mover
from runtimes.transport.handshake import Identity
from runtimes.transport.ringed import Ringed

WINDOW = 16 << 20
_HALF_DONE = 4096  # transfers that some streams, but not all, have called complete: more than a peer has open


class Channel:
    """Made by listener.py; `start` begins reading."""

    def __init__(self, link: Link, peer: Identity, passed: Sequence[str] = ()) -> None:
        self.peer = peer
        self._link = link
        self._ways = {way.rung: way for way in link.ways}
        self._passed = tuple(passed)
        self._done: dict[tuple[Rung, int], int] = {}  # streams that have said so, until all have
        self._mover: Mover | None = None  # of blocks on a GPU
        self._lost: ChannelError | None = None
        self._gently = False
        self._state = threading.Lock()
        self._receiver: Receiver | None = None
        self._landing: Landing | None = None
        self._reading = 0
        self._threads: list[threading.Thread] = []

    def start(self, receiver: Receiver, landing: Landing | None) -> None:
        """`landing`: None on a side that only sends blocks."""
        self._receiver, self._landing = receiver, landing
        readers: dict[str, Callable[[], None]] = {"control": self._read_control}
        streams = dict.fromkeys(stream for way in self._ways.values() for stream in way.streams)
        for number, stream in enumerate(streams):
            readers[f"bulk{number}"] = lambda stream=stream: self._read_frames(stream)  # type: ignore[misc]
        self._reading = len(readers)
        for name, read in readers.items():
            label = f"kv-{name}-{self.peer.name}"
            thread = threading.Thread(target=self._read, args=(read,), name=label, daemon=True)
            self._threads.append(thread)
            thread.start()

    # --- rungs

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Those that can be used now, best first."""
        return tuple(rung for rung, way in self._ways.items() if way.usable)

    @property
    def rung(self) -> Rung | Literal["none"]:
        """The best of them."""
        return next(iter(self.rungs), "none")

    def ports(self, rung: Rung) -> tuple[Port, ...]:
        """On this side; of a rung without a device, none."""
        return tuple(self._ways[rung].ports)

    @property
    def passed(self) -> tuple[str, ...]:
        """Rungs that can't be used, and why: "rdma: no RDMA device here"."""
        return self._passed + tuple(f"{rung}: {way.why}" for rung, way in self._ways.items() if way.why)

    def direct(self, rung: Rung | Literal[""] = "") -> bool:
        """Whether the sender writes into the receiver's own memory, which the receiver then can't refuse."""
        return self._way(rung).direct

    def lingers(self, rung: Rung | Literal[""] = "") -> bool:
        """Whether blocks that were written may not change before `flush`."""
        return self._mover is not None or self.direct(rung)

    def batch(self, rung: Rung | Literal[""] = "") -> int:
        """Bytes that are best written in one go, with `push` behind them; 0: any."""
        return 0 if self._mover is None else self._mover.batch(self._way(rung))

    def fits(self, rung: Rung, *, back: bool = False, parts: bool = False) -> bool:
        """Whether it takes blocks from the side that dialled (`back`), and pieces of blocks (`parts`)."""
        return (rung in EITHER_WAY or not back) and not (parts and self.direct(rung))

    def expose(self, layers: Sequence[Extent]) -> None:
        """Blocks of the peer may go straight into this memory. At any time, once."""
        if self._lost is None:  # memory may come long after the end
            self._adopt(layers, out=False)
            self._with_ways(lambda way: way.expose(layers))

    def use(self, layers: Sequence[Extent]) -> None:
        """Blocks for the peer lie in this memory. At any time, once."""
        if self._lost is None:
            self._adopt(layers, out=True)
            self._with_ways(lambda way: way.use(layers))

    def _adopt(self, layers: Sequence[Extent], *, out: bool) -> None:
        """Of a paged cache on a GPU the blocks are moved by the GPU, in and out of rings, or go from page to page."""
        if layers and isinstance(layers[0].owner, PagedBlocks):
            self._mover = self._mover or Mover(layers[0].owner, self.lose)
            for way in self._ways.values():
                if not (isinstance(way, Ringed) or way.pages):
                    way.why = way.why or "it does not carry the blocks of a paged cache on a GPU"
            best = self.rung
            if best != "none":
                self._mover.prepare(self._ways[best], out=out)
            for way in self._ways.values():  # not usable before both sides' memory is known, and ready then
                if way.pages and not way.why:
                    self._mover.prepare(way, out=out)

    # --- what is sent

    @property
    def lost(self) -> ChannelError | None:
        return self._lost

    def send(self, body: bytes) -> None:
        self._raise_if_lost()
        try:
            self._link.control.send(body)
        except ChannelError as error:
            self.lose(error)
            raise self._lost or error from error

    def largest_write(self, rung: Rung | Literal[""] = "") -> int:
        """Bytes that any single write may have."""
        return self._way(rung).largest

    def free(self, rung: Rung | Literal[""] = "") -> int:
        """Bytes that can be written now without waiting for credit."""
        return self._way(rung).free()

    def write(
        self,
        transfer: int,
        layer: int,
        target: int,
        blocks: Sequence[memoryview | Pages],
        rung: Rung | Literal[""] = "",
    ) -> int:
        """Writes these blocks to `target`, `target` + 1, ... on the other side; waits for credit.

        All blocks have one size. When it returns, the source may change, unless it lingers: then not before `flush`.
        To be called from one thread at a time: credit comes back in the order of the writes.
        """
        self._raise_if_lost()
        way = self._way(rung)
        size = sum(len(block) for block in blocks)
        if self._mover is not None:
            pages = [block for block in blocks if isinstance(block, Pages)]
            starts = accumulate((page.count for page in pages), initial=target)
            runs = [(page.first, start, page.count) for page, start in zip(pages, starts, strict=False)]
            return self.write_pages(transfer, runs, rung)
        views = [block for block in blocks if isinstance(block, memoryview)]
        checksums = struct.pack(f"<{len(views)}I", *(zlib.crc32(view) for view in views))
        frame = Frame(WRITE, RUNG_NAMES.index(way.rung), layer, transfer, len(views), target, size)
        self._losing(lambda: way.write(frame, checksums, views))
        return size

    def scatters(self, rung: Rung | Literal[""] = "") -> bool:
        """Whether `write_rows` is for it."""
        return self._mover is None and self._way(rung).scatters

    def write_rows(self, transfer: int, rows: Sequence[Row], rung: Rung | Literal[""] = "") -> int:
        """As `write`, for blocks of any layers, each for a place of its own; in one frame."""
        self._raise_if_lost()
        way = self._way(rung)
        size = sum(len(row.block) for row in rows)
        places = b"".join(PLACE.pack(row.layer, row.target, zlib.crc32(row.block)) for row in rows)
        frame = Frame(ROWS, RUNG_NAMES.index(way.rung), 0, transfer, len(rows), 0, size)
        self._losing(lambda: way.write_rows(frame, places, rows))
        return size

    def write_pages(
        self, transfer: int, runs: Sequence[tuple[int, int, int]], rung: Rung | Literal[""] = ""
    ) -> int:
        """As `write`, for a cache on a GPU: runs of blocks, each by its first here, its first there and how many."""
        self._raise_if_lost()
        way, mover = self._way(rung), self._mover
        if mover is None:
            raise ValueError("pages of a cache that is not in use")
        self._losing(lambda: mover.write(way, transfer, runs))
        return mover.block_bytes * sum(count for _, _, count in runs)

    def finish(self, transfer: int, blocks: int, rung: Rung | Literal[""] = "") -> None:
        """Tells the other side that this transfer is complete."""
        self._raise_if_lost()
        way = self._way(rung)
        frame = Frame(DONE, RUNG_NAMES.index(way.rung), transfer=transfer, blocks=blocks)
        self._flush(way)
        self._losing(lambda: way.finish(frame))

    def push(self, rung: Rung | Literal[""] = "") -> None:
        """What was written goes out now, if it was kept back."""
        if self._mover is not None:
            mover, way = self._mover, self._way(rung)
            self._losing(lambda: mover.push(way))

    def flush(self, transfer: int, rung: Rung | Literal[""] = "") -> None:
        """Returns when nothing of this transfer is under way. Raises ChannelError: the channel is lost."""
        self._raise_if_lost()
        way = self._way(rung)
        self._flush(way)
        self._losing(lambda: way.flush(transfer))

    def close(self) -> None:
        self.lose(ChannelError("closed", "closed on this side"), gently=True)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2.0)

    def lose(self, error: ChannelError, gently: bool = False) -> None:
        """Ends it, and does not wait for the readers. The first error counts. `gently`: what was sent arrives."""
        with self._state:
            if self._lost is not None:
                return
            self._lost, self._gently = error, gently
            unread = self._receiver is None
        self._link.end()
        for way in self._ways.values():
            way.lose(error)
        if unread:
            self._close()

    # --- threads

    def _read(self, read: Callable[[], None]) -> None:
        try:
            read()
        except ChannelError as error:
            self.lose(error)
        except ValueError as error:
            self.lose(ChannelError("protocol", str(error)))
        except Exception as error:  # a channel that nobody reads any more is none
            self.lose(ChannelError("device", f"{type(error).__name__}: {error}"))
        finally:
            with self._state:
                self._reading -= 1
                last = not self._reading
            if last:  # nobody reads, and behind `close` nobody is written to: the owner may reuse the memory
                self._close()
                if self._receiver is not None and self._lost is not None:
                    self._receiver.lost(self, self._lost)

    def _read_control(self) -> None:
        assert self._receiver is not None
        while True:
            self._receiver.message(self, self._link.control.receive())

    def _read_frames(self, stream: Stream) -> None:
        """The ways of one stream, each with the stream's number among its own."""
        ways = {
            RUNG_NAMES.index(way.rung): (way, way.streams.index(stream))
            for way in self._ways.values()
            if stream in way.streams
        }
        while True:
            frame, body = stream.frame()
            if frame.way not in ways:
                raise ChannelError("protocol", f"a frame of rung {frame.way}, which is not on this stream")
            way, lane = ways[frame.way]
            if frame.kind in (WRITE, PAGES):
                self._take(way, lane, frame, body)
            elif frame.kind == ROWS:
                self._take_rows(way, lane, frame, body)
            elif frame.kind == CREDIT:
                way.credited(lane, frame.size)
            elif frame.kind == DONE and self._landing is not None:
                self._count(way, frame)
            elif frame.kind == NOTE:
                way.told(lane, body)
            else:
                raise ChannelError("protocol", f"a frame of kind {frame.kind}")

    def _take(self, way: Way, lane: int, frame: Frame, checksums: bytes) -> None:
        if self._landing is None or not frame.blocks:
            raise ChannelError("protocol", "a write that makes no sense here")
        if self._mover is not None:
            self._mover.take(way, lane, frame, checksums, self._landing)
            return
        if frame.kind == PAGES or frame.blocks != len(checksums) // 4:
            raise ChannelError("protocol", "a write that makes no sense here")
        if frame.size % frame.blocks:
            raise ChannelError("protocol", f"{frame.blocks} blocks in {frame.size} bytes")
        window = self._landing.window(frame)
        if isinstance(window, Pages):
            raise ChannelError("protocol", "blocks before the cache that they are for")
        if window is not None and len(window) != frame.size:
            raise ChannelError("protocol", f"a write of {frame.size} bytes into {len(window)}")
        way.fetch(lane, frame, window)
        if window is not None:
            each = frame.size // frame.blocks
            broken = [
                frame.target + number
                for number, (checksum,) in enumerate(struct.iter_unpack("<I", checksums))
                if zlib.crc32(window[number * each : (number + 1) * each]) != checksum
            ]
            self._landing.landed(frame, broken)

    def _take_rows(self, way: Way, lane: int, frame: Frame, places: bytes) -> None:
        landing = self._landing
        if landing is None or self._mover is not None or not frame.blocks or frame.size % frame.blocks:
            raise ChannelError("protocol", "blocks that make no sense here")
        each = frame.size // frame.blocks
        rows: list[tuple[Frame, int, memoryview | None]] = []
        for layer, target, checksum in PLACE.iter_unpack(places):
            row = Frame(WRITE, frame.way, layer, frame.transfer, 1, target, each)
            window = landing.window(row)
            if window is not None and (isinstance(window, Pages) or len(window) != each):
                raise ChannelError("protocol", f"a block of {each} bytes where another one belongs")
            rows.append((row, checksum, window))
        way.fetch_rows(lane, frame, [window for _, _, window in rows])
        for row, checksum, window in rows:
            if window is not None:
                landing.landed(row, [] if zlib.crc32(window) == checksum else [row.target])

    def _count(self, way: Way, frame: Frame) -> None:
        """A transfer is done when each stream of its way has said so."""
        assert self._landing is not None
        key = way.rung, frame.transfer
        with self._state:
            said = self._done.pop(key, 0) + 1
            if said < len(way.streams):
                if len(self._done) == _HALF_DONE:
                    raise ChannelError(
                        "protocol", f"{_HALF_DONE} transfers are complete on some streams only"
                    )
                self._done[key] = said
                return
        if self._mover is not None:
            self._mover.settle(way)
        self._landing.done(frame.transfer, frame.blocks)

    # --- inside

    def _flush(self, way: Way) -> None:
        mover = self._mover
        if mover is not None:
            self._losing(lambda: mover.flush(way))

    def _close(self) -> None:
        if self._mover is not None:
            self._mover.close()
        self._link.close(self._gently)

    def _way(self, rung: Rung | Literal[""]) -> Way:
        wanted = rung or self.rung
        way = self._ways.get(wanted) if wanted != "none" else None
        if way is None or not way.usable:
            why = "; ".join(self.passed) or "not on this channel"
            raise ChannelError("incompatible", f"rung {wanted}: {why}")
        return way

    def _with_ways(self, call: Callable[[Way], None]) -> None:
        for way in self._ways.values():
            try:
                call(way)
            except ChannelError as error:
                self.lose(error)

    def _losing(self, call: Callable[[], None]) -> None:
        try:
            call()
        except ChannelError as error:
            self.lose(error)
            raise self._lost or error from error

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost
