"""The seam between whoever has KV blocks to move and the ways to move them: names, frames and errors.

A channel is two full-duplex connections between a pair of ranks: control (small messages, in order) and bulk
(writes of blocks one way, credits the other way). It is stamped with both sides' generation: a restarted peer
is another channel. Rungs differ in how bytes travel, and in nothing else: each is a Carrier. Usable without vLLM.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

Rung = Literal["shm", "rdma", "tcp"]

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
    """Head of every message on the bulk connection."""

    kind: int
    layer: int
    transfer: int
    blocks: int  # in this write; in DONE, blocks of the whole transfer
    target: int
    size: int  # bytes that follow (tcp) or lie in the ring (shm, rdma); in CREDIT, bytes given back
    offset: int  # in the ring


FRAME: Final = struct.Struct("<BxHIIIIQ")
WRITE: Final = 1
DONE: Final = 2
CREDIT: Final = 3
MAX_BLOCKS: Final = 65536  # in one write


class Carrier(Protocol):
    """A rung: how the bytes of one channel travel. Two threads read, one each for control and bulk; any may send.

    Every method raises ChannelError when the connection is lost. Nothing here waits for credit or checks a block.
    """

    rung: Rung
    size: int  # bytes of writes that may be under way

    def send(self, body: bytes) -> None:
        """A control message."""

    def receive(self) -> bytes:
        """The next control message."""

    def put(self, head: bytes, checksums: bytes, blocks: Sequence[memoryview], offset: int) -> None:
        """A write: `head` is its Frame, `offset` its place in the ring. The blocks may change when it returns."""

    def tell(self, head: bytes) -> None:
        """A frame without blocks."""

    def frame(self) -> tuple[Frame, bytes]:
        """The next frame, and the checksums if it is a write, whose bytes `fetch` then brings."""

    def fetch(self, frame: Frame, window: memoryview | None) -> None:
        """The bytes of a write into the window; None: they are thrown away."""

    def end(self) -> None:
        """Wakes both readers for the last time; called once, by any thread."""

    def close(self) -> None:
        """Called once, when both readers have left."""


class Landing(Protocol):
    """The receiving side of a channel: says where a write may go, and learns what became of it.

    Called from the channel's reader thread. Between `window` and `landed` that memory is being written to.
    """

    def window(self, frame: Frame) -> memoryview | None:
        """The memory for this write; None: it isn't expected (any more), its bytes are thrown away."""

    def landed(self, frame: Frame, broken: list[int]) -> None:
        """It is written; `broken` are the blocks whose checksum is wrong."""

    def done(self, transfer: int, blocks: int) -> None:
        """The sender has written everything of this transfer."""


class Receiver(Protocol):
    """What a channel tells its owner, from its reader threads."""

    def message(self, channel: object, body: bytes) -> None: ...

    def lost(self, channel: object, error: ChannelError) -> None:
        """Exactly once, after which the channel is closed and nothing more is called."""
