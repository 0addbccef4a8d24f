"""Ranks: every byte of every receiver's block exactly once, from where the same head is."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kserve_ext.core.kv_ranks import Indivisible, Part, held, parts, within

heads = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16])
degrees = st.sampled_from([1, 2, 3, 4, 6, 8, 16, 32])
HEAD_BYTES = 48


def divides(kv_heads: int, degree: int) -> bool:
    return max(kv_heads, degree) % min(kv_heads, degree) == 0


@given(heads, degrees, degrees)
def test_every_byte_of_every_block_once_and_of_the_right_head(
    kv_heads: int, sending: int, receiving: int
) -> None:
    assume(divides(kv_heads, sending) and divides(kv_heads, receiving))

    def block(degree: int, rank: int) -> list[tuple[int, int]]:
        return [(head, byte) for head in held(kv_heads, degree, rank) for byte in range(HEAD_BYTES)]

    filled: dict[int, list[tuple[int, int] | None]] = {
        rank: [None] * len(block(receiving, rank)) for rank in range(receiving)
    }
    for part in parts(kv_heads, sending, receiving):
        source, target = block(sending, part.source), filled[part.target]
        read = within(len(source), len(source) // HEAD_BYTES, part.source_head, part.heads)
        put = within(len(target), len(target) // HEAD_BYTES, part.target_head, part.heads)
        assert read.size == put.size == part.heads * HEAD_BYTES
        assert target[put.offset : put.offset + put.size] == [None] * put.size
        target[put.offset : put.offset + put.size] = source[read.offset : read.offset + read.size]
    assert filled == {rank: block(receiving, rank) for rank in range(receiving)}


@given(heads, degrees, degrees)
def test_a_pair_of_ranks_exchanges_one_range_at_most(kv_heads: int, sending: int, receiving: int) -> None:
    assume(divides(kv_heads, sending) and divides(kv_heads, receiving))
    pairs = Counter((part.source, part.target) for part in parts(kv_heads, sending, receiving))
    assert set(pairs.values()) == {1}


@given(heads, degrees)
def test_equal_degrees_exchange_rank_by_rank(kv_heads: int, degree: int) -> None:
    assume(divides(kv_heads, degree))
    each = len(held(kv_heads, degree, 0))
    assert parts(kv_heads, degree, degree) == tuple(Part(r, r, 0, 0, each) for r in range(degree))


@given(st.sampled_from([1, 2, 4]), st.sampled_from([8, 16]), st.sampled_from([1, 2, 4, 8, 16]))
def test_copies_of_a_head_share_the_work(kv_heads: int, sending: int, receiving: int) -> None:
    asked = Counter(part.source for part in parts(kv_heads, sending, receiving))
    copies, takers = sending // kv_heads, max(1, receiving // kv_heads)
    assert max(asked.values()) <= max(1, -(-takers // copies)) * max(1, kv_heads // sending)


@given(heads, degrees, degrees)
def test_what_does_not_divide_is_refused(kv_heads: int, sending: int, receiving: int) -> None:
    assume(not (divides(kv_heads, sending) and divides(kv_heads, receiving)))
    with pytest.raises(Indivisible, match=r"^tensor_parallel: .* can't be divided"):
        parts(kv_heads, sending, receiving)


def test_a_block_that_has_no_equal_heads() -> None:
    with pytest.raises(ValueError, match="100 bytes does not hold 3"):
        within(100, 3, 0, 1)
