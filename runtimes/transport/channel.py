"""The seam between whoever has KV blocks to move and the ways to move them: names, frames and errors.

A channel is two full-duplex connections between a pair of ranks: control (small messages, in order) and bulk
(writes of blocks one way, credits the other way). It is stamped with both sides' generation: a restarted peer
is another channel. Rungs differ only in how the bytes of a write travel. Usable without vLLM.
"""

from __future__ import annotations

import struct
from typing import Final, Literal, NamedTuple, Protocol

Rung = Literal["shm", "tcp"]

Reason = Literal[
    "closed",  # the peer has ended the connection, or we have
    "unreachable",
    "timeout",
    "unauthenticated",
    "generation",  # the peer is not the incarnation that was meant
    "incompatible",  # KV layouts differ: model, dtype, block size, number of layers
    "protocol",
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
    size: int  # bytes that follow (tcp) or lie in the ring (shm); in CREDIT, bytes given back
    offset: int  # in the ring


FRAME: Final = struct.Struct("<BxHIIIIQ")
WRITE: Final = 1
DONE: Final = 2
CREDIT: Final = 3


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
