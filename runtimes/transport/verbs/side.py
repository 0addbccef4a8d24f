"""What two sides tell each other of their queue pairs, and the first field that keeps them apart. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from runtimes.transport.verbs.choice import Place, objection

VERSION: Final = 1


class Side(msgspec.Struct, frozen=True):
    """What a peer must know of this side's queue pairs. Sent within the handshake, and covered by its proofs."""

    version: int
    device: str
    link: str
    family: str
    gid: str
    lid: int
    mtu: int
    reads: int
    control: tuple[int, int]  # number of the queue pair, and of its first packet
    bulk: tuple[int, int]
    ring: int = 0  # address and key of the ring, on the side that receives blocks
    ring_key: int = 0
    ring_size: int = 0


def differs(mine: Place, theirs: Side) -> str:
    """The first field that keeps the two sides apart; "" when there is none."""
    if theirs.version != VERSION:
        return f"version: {VERSION} here, {theirs.version} there"
    return objection(mine, theirs.link, theirs.family)
