"""The rung `rdma`: WRITEs from the sender's registered KV memory into the receiver's, no copy on either side.

Each side registers its layers once a device (cards.py). The receiver tells their addresses and keys, the sender
answers when it has registered its own: from then on the rung is usable. What is under way is bounded by what the
sender's device has not carried out yet. A write goes whole to the rail with the least under way (if that is equal,
to the one that has carried less), so those of one transfer may arrive in any order.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Sequence

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.channel import NOTE, RUNG_NAMES, ChannelError, Extent, Frame, Row, Rung, Way
from runtimes.transport.verbs import cards
from runtimes.transport.verbs.memory import Region
from runtimes.transport.verbs.rail import Rail
from runtimes.transport.verbs.work import Piece, joined


class _Layer(msgspec.Struct, frozen=True, array_like=True):
    address: int
    key: int
    size: int


class _Exposed(msgspec.Struct, frozen=True, tag=True):
    """Receiver -> sender: its layers, as each rail's device knows them."""

    rails: list[list[_Layer]]


class _Agreed(msgspec.Struct, frozen=True, tag=True):
    """Sender -> receiver. `why` it can't write there; "": it can."""

    why: str = ""


_notes = msgspec.msgpack.Decoder(_Exposed | _Agreed)


class _Lane:
    """A rail, and what is under way on it."""

    def __init__(self, rail: Rail) -> None:
        self.rail = rail
        self.mine: list[Region] = []
        self.theirs: list[_Layer] = []
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

    def __init__(self, rails: Sequence[Rail], window: int) -> None:
        self.streams = rails
        self.ports = [rail.end.port for rail in rails]
        self._window = window
        self._lanes = [_Lane(rail) for rail in rails]
        self._lock = threading.Lock()
        self._sources: Sequence[Extent] | None = None
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
            if not self._register(layers, remote=True):
                return
            rails = [
                [_Layer(region.address, region.key.remote, region.length) for region in lane.mine]
                for lane in self._lanes
            ]
        self._note(_Exposed(rails))

    def use(self, layers: Sequence[Extent]) -> None:
        with self._lock:
            self._sources = layers
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
        self._agree()

    def _agree(self) -> None:
        """At the sender, once both sides' memory is known."""
        with self._lock:
            theirs = self._lanes[0].theirs
            if self._sources is None or not theirs or self._agreed or self.why:
                return
            if len(theirs) != len(self._sources):
                self.why = f"layers: {len(self._sources)} here, {len(theirs)} there"
            elif self._register(self._sources, remote=False):
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

    def post(self, frame: Frame, checksums: bytes, offsets: Sequence[int]) -> None:
        """Blocks known by where they lie in their layer, as those of a GPU are."""
        self._post(frame, checksums, [(frame.layer, at, frame.target + n) for n, at in enumerate(offsets)])

    def _post(self, frame: Frame, body: bytes, places: Sequence[tuple[int, int, int]]) -> None:
        """Of each block: its layer, its offset there, and the block that it becomes."""
        self._room(frame.size)
        number, lane = min(enumerate(self._lanes), key=lambda each: (each[1].bytes, each[1].carried))
        regions = lane.mine
        if not regions:
            raise ChannelError("closed", "closed on this side")
        each = frame.size // frame.blocks
        pieces = []
        for layer, offset, target in places:
            theirs = lane.theirs[layer]
            if (target + 1) * each > theirs.size:
                raise ValueError(f"block {target} lies beyond the peer's layer {layer}")
            pieces.append(regions[layer].piece(offset, each, theirs.address + target * each, theirs.key))
        self._tickets.setdefault(frame.transfer, {})[number] = lane.write(frame, body, joined(pieces))

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


def _address(block: memoryview) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(block))
    except TypeError as error:
        raise ValueError("blocks that are written must lie in the memory that is in use") from error
