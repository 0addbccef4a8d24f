"""The ring's account never hands out bytes twice."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from runtimes.transport.credit import Space


@given(st.lists(st.one_of(st.integers(1, 40), st.none()), max_size=60))
def test_pieces_never_overlap_and_largest_is_true(steps: list[int | None]) -> None:
    space = Space(64)
    live: deque[tuple[int, int]] = deque()
    for size in steps:
        if size is None:
            if live:
                space.give_back(live.popleft()[1])
            continue
        could = space.largest
        offset = space.reserve(size)
        assert (offset is not None) == (size <= could)
        if offset is not None:
            assert 0 <= offset <= 64 - size
            assert all(offset + size <= at or at + length <= offset for at, length in live)
            live.append((offset, size))
