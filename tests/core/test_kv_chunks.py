"""Chunks: every row exactly once, in order, in as few slots as will do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.kv_chunks import chunks


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
