"""What a transfer asks of the device, before it is posted: pieces of memory, joined, cut and spread. Pure.

Neighbours on both sides become one work request, since each costs the same however small it is. What is longer than
the device's longest message is cut. Over several rails bytes are spread evenly, but no piece is cut below `least`:
a short transfer stays on one rail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

LEAST: Final = 256 << 10


class Piece(NamedTuple):
    """`size` bytes at the address `local`, for the address `remote`, under both sides' keys."""

    local: int
    lkey: int
    remote: int
    rkey: int
    size: int


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same bytes in the same order, in as few pieces as possible."""
    out: list[Piece] = []
    for piece in pieces:
        if piece.size <= 0:
            continue
        if out:
            last = out[-1]
            if (
                last.local + last.size == piece.local
                and last.remote + last.size == piece.remote
                and last.lkey == piece.lkey
                and last.rkey == piece.rkey
            ):
                out[-1] = last._replace(size=last.size + piece.size)
                continue
        out.append(piece)
    return out


def cut(pieces: Iterable[Piece], most: int) -> list[Piece]:
    """No piece longer than `most`."""
    out: list[Piece] = []
    for piece in pieces:
        for at in range(0, piece.size, most):
            size = min(most, piece.size - at)
            out.append(piece._replace(local=piece.local + at, remote=piece.remote + at, size=size))
    return out


def spread(pieces: Sequence[Piece], rails: int, least: int = LEAST) -> list[list[Piece]]:
    """One list a rail, equal in bytes to within `least`; fewer rails are used when there is less to do.

    The keys are left as they are: each rail's own are put in by whoever posts.
    """
    total = sum(piece.size for piece in pieces)
    used = max(1, min(rails, total // least if least else rails))
    share = -(-total // used)
    out: list[list[Piece]] = [[] for _ in range(rails)]
    rail, room = 0, share
    for piece in pieces:
        at = 0
        while at < piece.size:
            size = min(room, piece.size - at)
            out[rail].append(piece._replace(local=piece.local + at, remote=piece.remote + at, size=size))
            at += size
            room -= size
            if room == 0 and rail + 1 < used:
                rail, room = rail + 1, share
            elif room == 0:
                room = share
    return out
