"""Pieces of a transfer, joined and cut: every byte still goes where it went, once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from runtimes.transport.verbs.work import Piece, cut, joined

SHIFT = 1 << 20  # remote = local + SHIFT unless a gap is drawn


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Side by side, with gaps on one side or both, under two keys."""
    out, local, remote = [], 0, SHIFT
    for _ in range(draw(st.integers(0, 12))):
        local += draw(st.sampled_from([0, 0, 0, 16]))
        remote += draw(st.sampled_from([0, 0, 0, 32]))
        size = draw(st.integers(0, 64))
        out.append(Piece(local, draw(st.sampled_from([1, 1, 1, 2])), remote, 9, size))
        local, remote = local + size, remote + size
    return out


def moves(of: list[Piece]) -> list[tuple[int, int, int, int]]:
    """Byte by byte: from where to where, under which keys."""
    return [(p.local + n, p.lkey, p.remote + n, p.rkey) for p in of for n in range(p.size)]


@given(pieces())
def test_joined_pieces_move_the_same_bytes_and_have_no_neighbours_left(given_pieces: list[Piece]) -> None:
    out = joined(given_pieces)
    assert moves(out) == moves(given_pieces)
    for before, after in pairwise(out):
        adjacent = (before.local + before.size, before.remote + before.size) == (after.local, after.remote)
        assert not (adjacent and before.lkey == after.lkey)


@given(pieces(), st.integers(1, 80))
def test_cut_pieces_move_the_same_bytes_and_none_is_too_long(given_pieces: list[Piece], most: int) -> None:
    out = cut(given_pieces, most)
    assert moves(out) == moves(given_pieces)
    assert all(0 < piece.size <= most for piece in out)
