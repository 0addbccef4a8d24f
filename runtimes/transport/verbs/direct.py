"""The rung `rdma`: WRITEs from the sender's registered KV memory into the receiver's, no copy on either side.

Each side registers its layers once a device (cards.py). The receiver tells their addresses and keys, the sender
answers when it has registered its own: from then on the rung is usable. What is under way is bounded by what the
sender's device has not carried out yet. A write goes whole to the rail with the least under way (if that is equal,
to the one that has carried less), so those of one transfer may arrive in any order. Of a paged cache on a GPU the
memory around its pages is registered, and the receiver tells where in it they lie (pages.py).
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Sequence

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.channel import NOTE, RUNG_NAMES, ChannelError, Extent, Frame, Row, Rung, Way
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.verbs import cards
from runtimes.transport.verbs.memory import Region
from runtimes.transport.verbs.pages import Lying, Sheet, differs, requests, sheet, spans
from runtimes.transport.verbs.rail import Rail
from runtimes.transport.verbs.work import Piece, joined


class _Exposed(msgspec.Struct, frozen=True, tag=True):
    """Receiver -> sender: its layers, as each rail's device knows them, or what its pages lie in."""

    rails: list[list[Lying]]
    sheet: Sheet | None = None


class _Agreed(msgspec.Struct, frozen=True, tag=True):
    """Sender -> receiver. `why` it can't write there; "": it can."""

    why: str = ""


_notes = msgspec.msgpack.Decoder(_Exposed | _Agreed)


class _Lane:
    """A rail, and what is under way on it."""

    def __init__(self, rail: Rail) -> None:
        self.rail = rail
        self.mine: list[Region] = []
        self.theirs: list[Lying] = []
        self.block: list[Piece] = []  # block 0 of a paged cache for the peer's
        self.bytes = 0
        self.carried = 0  # in all
        self._posted: deque[tuple[int, int]] = deque()  # ticket, bytes
        self._lock = threading.Lock()  # one thread writes, any may ask what is free

    def write(self, frame: Frame, checksums: bytes, pieces: Sequence[Piece]) -> int:
        ticket = self.rail.write(frame, checksums, pieces)
        with self._lock:
            self._posted.append((ticket, frame.size))
            self.bytes += frame.size
            self.carried += frame.size
        return ticket

    def reap(self, wait: bool = False) -> None:
        """Forgets what has been carried out. `wait`: until something has."""
        with self._lock:
            if not self._posted:
                return
            oldest, _ = self._posted[0]
        if wait:
            self.rail.end.bulk.wait(oldest)
        done = self.rail.end.bulk.carried_out()
        with self._lock:
            while self._posted and self._posted[0][0] <= done:
                self.bytes -= self._posted.popleft()[1]


class Direct(Way):
    rung: Rung = "rdma"
    direct = True
    scatters = True
    pages = True

    def __init__(self, rails: Sequence[Rail], window: int) -> None:
        self.streams = rails
        self.ports = [rail.end.port for rail in rails]
        self._window = window
        self._lanes = [_Lane(rail) for rail in rails]
        self._lock = threading.Lock()
        self._sources: Sequence[Extent] | None = None
        self._sheet: Sheet | None = None  # of our paged cache
        self._theirs: Sheet | None = None
        self._tickets: dict[int, dict[int, int]] = {}  # transfer -> lane -> its last ticket
        self._agreed = self._closed = False

    @property
    def usable(self) -> bool:
        return self._agreed and not self.why

    @property
    def largest(self) -> int:
        return self._window // 2

    def free(self) -> int:
        for lane in self._lanes:
            lane.reap()
        return max(0, self._window - sum(lane.bytes for lane in self._lanes))

    # --- agreeing

    def expose(self, layers: Sequence[Extent]) -> None:
        with self._lock:
            owner = layers[0].owner if layers else None
            if isinstance(owner, PagedBlocks) and not owner.device.flushable:
                self.why = "the GPU neither sees a network card's writes in order nor can be told to"
            extents, self._sheet = _laid_out(layers)
            if not self._register(extents, remote=True):
                return
            rails = [
                [Lying(region.address, region.key.remote, region.length) for region in lane.mine]
                for lane in self._lanes
            ]
        self._note(_Exposed(rails, self._sheet))

    def use(self, layers: Sequence[Extent]) -> None:
        with self._lock:
            self._sources, self._sheet = _laid_out(layers)
        self._agree()

    def told(self, lane: int, body: bytes) -> None:
        try:
            note: _Exposed | _Agreed = _notes.decode(body)
        except UNREADABLE as error:
            raise ChannelError("protocol", str(error)) from error
        if isinstance(note, _Agreed):
            self.why, self._agreed = self.why or note.why, not note.why
            return
        if len(note.rails) != len(self._lanes):
            raise ChannelError("protocol", f"memory on {len(note.rails)} rails of {len(self._lanes)}")
        with self._lock:
            for mine, theirs in zip(self._lanes, note.rails, strict=True):
                mine.theirs = theirs
            self._theirs = note.sheet
        self._agree()

    def _agree(self) -> None:
        """At the sender, once both sides' memory is known."""
        with self._lock:
            theirs = self._lanes[0].theirs
            if self._sources is None or not theirs or self._agreed or self.why:
                return
            mine, other = self._sheet, self._theirs
            self.why = differs(mine, other, theirs)
            if mine is None and not self.why and len(theirs) != len(self._sources):
                self.why = f"layers: {len(self._sources)} here, {len(theirs)} there"
            if self._register(self._sources, remote=False):
                for lane in self._lanes:
                    if mine is not None and other is not None:
                        lane.block = spans(mine, lane.mine, other, lane.theirs)
                self._agreed = True
            if self._closed:
                return
        self._note(_Agreed(self.why))

    def _register(self, layers: Sequence[Extent], *, remote: bool) -> bool:
        """With every rail's device, or with none. With the lock held."""
        if self._closed or self.why:
            return False
        try:
            for lane in self._lanes:
                for layer in layers:
                    lane.mine.append(cards.share(lane.rail.end.card, layer, remote=remote))
        except ChannelError as error:
            self.why = error.detail or error.reason
            self._release()
        return not self.why

    def _release(self) -> None:
        for lane in self._lanes:
            mine, lane.mine = lane.mine, []
            for region in mine:
                cards.unshare(lane.rail.end.card, region)

    def _note(self, note: _Exposed | _Agreed) -> None:
        body = msgspec.msgpack.encode(note)
        self.streams[0].tell(Frame(NOTE, RUNG_NAMES.index(self.rung), size=len(body)), body)

    # --- writing

    def write(self, frame: Frame, checksums: bytes, blocks: Sequence[memoryview]) -> None:
        rows = [Row(frame.layer, frame.target + number, block) for number, block in enumerate(blocks)]
        self.write_rows(frame, checksums, rows)

    def write_rows(self, frame: Frame, places: bytes, rows: Sequence[Row]) -> None:
        starts = [source.address for source in self._sources or ()]
        if any(not 0 <= row.layer < len(starts) for row in rows):
            raise ValueError(f"no memory for layer {max(row.layer for row in rows)} is in use")
        found = [(row.layer, _address(row.block) - starts[row.layer], row.target) for row in rows]
        self._post(frame, places, found)

    def write_pages(self, frame: Frame, places: bytes, runs: Sequence[tuple[int, int, int]]) -> None:
        mine, theirs = self._sheet, self._theirs
        if mine is None or theirs is None:
            raise ValueError("no paged cache is in use")
        beyond = next((target + n for _, target, n in runs if target + n > theirs.blocks), 0)
        if beyond:
            raise ChannelError(
                "protocol", f"block {beyond - 1} is wanted, the peer's cache has {theirs.blocks}"
            )
        number = self._choose(frame.size)
        pieces = requests(self._lanes[number].block, mine.stride, theirs.stride, runs)
        self._send(number, frame, places, pieces)

    def _post(self, frame: Frame, body: bytes, places: Sequence[tuple[int, int, int]]) -> None:
        """Of each block: its layer, its offset there, and the block that it becomes."""
        number = self._choose(frame.size)
        lane, each = self._lanes[number], frame.size // frame.blocks
        regions = lane.mine
        pieces = []
        for layer, offset, target in places:
            theirs = lane.theirs[layer]
            if (target + 1) * each > theirs.size:
                raise ValueError(f"block {target} lies beyond the peer's layer {layer}")
            pieces.append(regions[layer].piece(offset, each, theirs.address + target * each, theirs.key))
        self._send(number, frame, body, joined(pieces))

    def _choose(self, size: int) -> int:
        """A lane, when there is room."""
        self._room(size)
        number, lane = min(enumerate(self._lanes), key=lambda each: (each[1].bytes, each[1].carried))
        if not lane.mine:
            raise ChannelError("closed", "closed on this side")
        return number

    def _send(self, number: int, frame: Frame, body: bytes, pieces: Sequence[Piece]) -> None:
        self._tickets.setdefault(frame.transfer, {})[number] = self._lanes[number].write(frame, body, pieces)

    def flush(self, transfer: int) -> None:
        for number, ticket in self._tickets.pop(transfer, {}).items():
            self._lanes[number].rail.end.bulk.wait(ticket)

    def _room(self, size: int) -> None:
        if size > self.largest:
            raise ValueError(f"a write of {size} bytes; at most {self.largest}")
        while self.free() < size:
            max(self._lanes, key=lambda lane: lane.bytes).reap(wait=True)

    # --- receiving: the bytes are there when their frame is

    def fetch(self, lane: int, frame: Frame, window: memoryview | None) -> None:
        return

    def fetch_rows(self, lane: int, frame: Frame, windows: Sequence[memoryview | None]) -> None:
        return

    def close(self) -> None:
        """When the queue pairs are no more."""
        with self._lock:
            self._closed = True
            self._release()


def _laid_out(layers: Sequence[Extent]) -> tuple[Sequence[Extent], Sheet | None]:
    """What is to be registered, and of a paged cache where its blocks are in it."""
    owner = layers[0].owner if layers else None
    if not isinstance(owner, PagedBlocks):
        return layers, None
    memory = owner.memory()
    found = sheet(memory, owner.addresses, (owner.part_bytes, owner.step, owner.blocks))
    return [Extent(start, size, True, owner) for start, size in memory], found


def _address(block: memoryview) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(block))
    except TypeError as error:
        raise ValueError("blocks that are written must lie in the memory that is in use") from error
