"""Chunks: every row exactly once, in order, in as few slots as will do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.kv_chunks import Chunk, chunks, fits


@given(st.integers(1, 9), st.integers(0, 20), st.integers(0, 40), st.integers(1, 50))
def test_every_row_once_and_only_the_last_chunk_is_short(
    layers: int, first: int, count: int, rows: int
) -> None:
    made = list(chunks(layers, first, first + count, rows))
    seen = [
        (row // count, first + row % count)
        for chunk in made
        for row in range(chunk.row, chunk.row + chunk.rows)
    ]
    assert seen == [(layer, block) for layer in range(layers) for block in range(first, first + count)]
    assert all((chunk.first, chunk.end) == (first, first + count) for chunk in made)
    assert all(chunk.rows == rows for chunk in made[:-1])
    assert all(0 < chunk.rows <= rows for chunk in made)


def test_a_slot_without_room() -> None:
    with pytest.raises(ValueError, match="make slots larger"):
        list(chunks(1, 0, 1, 0))


@given(st.integers(1, 5), st.integers(0, 6), st.integers(1, 6), st.integers(1, 40))
def test_every_chunk_of_a_transfer_fits_into_it(layers: int, first: int, count: int, rows: int) -> None:
    for chunk in chunks(layers, first, first + count, rows):
        assert fits(chunk, layers, first + count, rows)
        assert not fits(chunk, layers, first + count - 1, rows)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(-1, 2, 0, 1),  # its row 0 would be in front of the transfer's first block
        Chunk(2, 2, 0, 1),
        Chunk(3, 2, 0, 1),
        Chunk(0, 5, 0, 1),
        Chunk(0, 2, -1, 1),
        Chunk(0, 2, 0, 0),
        Chunk(0, 2, 0, -1),
        Chunk(0, 2, 0, 4),  # more than a slot takes
        Chunk(0, 2, 5, 2),  # beyond the last layer
    ],
)
def test_what_does_not_fit_would_be_somebody_elses_memory(chunk: Chunk) -> None:
    assert not fits(chunk, 3, 4, 3)
