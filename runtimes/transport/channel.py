"""The seam between whoever has KV blocks to move and the ways to move them: names, frames and errors.

A channel is what connects a pair of ranks: one connection for control (small messages, in order), and streams of
frames (writes of blocks one way, credits the other way). It is stamped with both sides' generation: a restarted peer
is another channel. It has several rungs at once; each transfer names the one that it takes. Rungs differ in how bytes
travel, and in nothing else: each is a Way. Usable without vLLM.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args

#: `rdma` goes from the sender's KV memory into the receiver's (on a GPU: GPUDirect), `rdma-staged` from ring to ring.
Rung = Literal["rdma", "rdma-staged", "ipc", "shm", "nixl", "tcp"]
RUNG_NAMES: Final[tuple[Rung, ...]] = get_args(Rung)

#: Those on which blocks go either way; on the others only from the side that listened.
EITHER_WAY: Final[frozenset[Rung]] = frozenset(("shm", "tcp"))

Reason = Literal[
    "closed",  # the peer has ended the connection, or we have
    "unreachable",
    "timeout",
    "unauthenticated",
    "generation",  # the peer is not the incarnation that was meant
    "incompatible",  # KV layouts differ (layout.py), or the number of layers, or nothing that both sides may use
    "protocol",
    "memory",  # it can't be had or registered, or a key does not allow what was asked for
    "device",  # an RDMA device is missing, in use or broken
]


class ChannelError(Exception):
    """The channel can't be set up, or is lost. `reason` is a word for metrics and headers."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: Reason = reason
        self.detail = detail


class Frame(NamedTuple):
    """Head of every message on a stream."""

    kind: int
    way: int  # number of its rung in RUNG_NAMES
    layer: int = 0
    transfer: int = 0
    blocks: int = 0  # in this write; in DONE, blocks of the whole transfer
    target: int = 0
    size: int = (
        0  # bytes that follow (tcp), lie in the ring or were written; in CREDIT, given back; in NOTE, its own
    )
    offset: int = 0  # in the ring

    @property
    def rung(self) -> Rung:
        return RUNG_NAMES[self.way]


FRAME: Final = struct.Struct("<BBHIIIIQ")
WRITE: Final = 1
DONE: Final = 2
CREDIT: Final = 3
NOTE: Final = 4  # what the two ends of a way tell each other
ROWS: Final = 5  # a write of blocks each of which has a place of its own
PLACE: Final = struct.Struct("<III")  # of such a block: layer, target, checksum
PAGES: Final = 6  # a write of blocks of a GPU's paged cache, each in all layers, into those of another one
PAGE: Final = struct.Struct("<IQ")  # of such a block: target, what it sums up to (cuda/kernels.py)
MAX_BLOCKS: Final = 65536  # in one write
MAX_NOTE: Final = 1 << 20  # bytes


class Row(NamedTuple):
    """A block of one layer, and the block that it becomes on the other side."""

    layer: int
    target: int
    block: memoryview


class Extent(NamedTuple):
    """The KV memory of one layer, which stays its owner's."""

    address: int
    size: int
    gpu: bool = False
    owner: Any = None  # keeps it valid


@dataclass(frozen=True, slots=True)
class Pages:
    """Blocks of a GPU's paged cache, in all layers: what a memoryview is of host memory."""

    first: int
    count: int
    block_bytes: int

    def __len__(self) -> int:
        return self.count * self.block_bytes


class Port(NamedTuple):
    """Where a rung over a device begins on this side."""

    device: str  # with the number of its port: "mlx5_0:1"
    gid: str
    mtu: int  # that both sides agreed on


class Control(Protocol):
    """Small messages, in order. Any thread may send, one receives. ChannelError: the connection is lost."""

    def send(self, body: bytes) -> None: ...

    def receive(self) -> bytes: ...


class Stream(Protocol):
    """Frames, in order. Any thread may tell, one reads. ChannelError: the connection is lost."""

    def tell(self, frame: Frame, body: bytes = b"") -> None:
        """A frame without blocks."""

    def frame(self) -> tuple[Frame, bytes]:
        """The next one, with the checksums or places of a write, or the body of a note."""


class Way(ABC):
    """A rung of one channel: how blocks travel. Methods raise ChannelError when the connection is lost.

    One thread at a time writes; the frames of a stream are read by one thread, which then calls `fetch`, `credited`
    and `told` with the stream's number in `streams`. Nothing here checks a block. A way through a ring or a socket
    leaves most of it as it is here.
    """

    rung: Rung
    streams: Sequence[Stream]
    #: Whether the sender writes into the receiver's own memory, which the receiver then can't refuse.
    direct = False
    #: Whether it takes blocks for places of their own in one write.
    scatters = False
    #: Whether it takes blocks of a GPU's paged cache from where they lie to where they belong.
    pages = False
    #: Why it can't be used (any more); "": it can be, or not yet.
    why = ""
    ports: Sequence[Port] = ()

    @property
    def usable(self) -> bool:
        """Whether blocks can be written now."""
        return not self.why

    @property
    @abstractmethod
    def largest(self) -> int:
        """Bytes that any single write may have."""

    @abstractmethod
    def free(self) -> int:
        """Bytes that can be written now without waiting."""

    @abstractmethod
    def write(self, frame: Frame, checksums: bytes, blocks: Sequence[memoryview]) -> None:
        """Waits for credit. Unless `direct`, the blocks may change when it returns."""

    def write_rows(self, frame: Frame, places: bytes, rows: Sequence[Row]) -> None:
        """As `write`; a way that scatters."""
        self.write(frame, places, [row.block for row in rows])

    def write_pages(self, frame: Frame, places: bytes, runs: Sequence[tuple[int, int, int]]) -> None:
        """As `write`; a way for pages. Runs are blocks' first here, first over there and how many."""
        raise ChannelError("protocol", f"pages by {self.rung}")

    @abstractmethod
    def fetch(self, lane: int, frame: Frame, window: memoryview | None) -> None:
        """The bytes of a write into the window; None: they are thrown away, where that is possible."""

    def fetch_rows(self, lane: int, frame: Frame, windows: Sequence[memoryview | None]) -> None:
        """As `fetch`, of blocks one after the other."""
        raise ChannelError("protocol", f"blocks for places of their own by {self.rung}")

    def finish(self, frame: Frame) -> None:
        """Says on every stream that a transfer is complete, behind its writes."""
        for stream in self.streams:
            stream.tell(frame)

    def flush(self, transfer: int) -> None:
        """Returns when nothing of this transfer is under way: its blocks may change, and nobody writes any more."""
        return

    def credited(self, lane: int, size: int) -> None:
        raise ChannelError("protocol", f"credit for {self.rung}")

    def told(self, lane: int, body: bytes) -> None:
        raise ChannelError("protocol", f"a note for {self.rung}")

    def expose(self, layers: Sequence[Extent]) -> None:
        """The memory that the peer's blocks go to. May come long after the channel stands."""
        return

    def use(self, layers: Sequence[Extent]) -> None:
        """The memory that blocks for the peer come from."""
        return

    def lose(self, error: ChannelError) -> None:
        """Wakes whoever waits for credit."""
        return


class Link(Protocol):
    """What a channel stands on: its connections, and what belongs to its ways."""

    control: Control
    ways: Sequence[Way]  # best first

    def end(self) -> None:
        """Wakes all readers for the last time; called once, by any thread."""

    def close(self, gently: bool) -> None:
        """Called once, when all readers have left. After it no peer writes here. `gently`: what was sent arrives."""


class Landing(Protocol):
    """The receiving side of a channel: says where a write may go, and learns what became of it.

    Called from the readers of the channel's streams. Between `window` and `landed` that memory is being written to.
    """

    def window(self, frame: Frame) -> memoryview | Pages | None:
        """The memory for this write; None: it isn't expected (any more), its bytes are thrown away."""

    def landed(self, frame: Frame, broken: list[int]) -> None:
        """It is written; `broken` are the blocks whose checksum is wrong."""

    def done(self, transfer: int, blocks: int) -> None:
        """The sender has written everything of this transfer."""


class PieceLanding(Landing, Protocol):
    """One of a cache on a GPU, whose blocks come many at once, for anywhere. All of a piece are wanted, or none."""

    def expects(self, frame: Frame, targets: Sequence[int]) -> bool:
        """As `window`; between it and `arrived` these blocks are being written to."""

    def arrived(self, frame: Frame, targets: Sequence[int], broken: Sequence[int]) -> None:
        """As `landed`, by whoever waits for the GPU."""


class Receiver(Protocol):
    """What a channel tells its owner, from its reader threads."""

    def message(self, channel: object, body: bytes) -> None: ...

    def lost(self, channel: object, error: ChannelError) -> None:
        """Exactly once, last of all: the peer can't write here any more."""
