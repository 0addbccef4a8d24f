"""What a transfer asks of the device, before it is posted: pieces of memory, joined and cut. Pure.

Neighbours on both sides become one work request, since each costs the same however small it is. What is longer than
the device's longest message is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


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
