"""Rows of paged caches in every layout that attention backends use: each byte of a block once, and no other's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtimes.transport.cuda.paging import Rows, rows

BLOCKS, LAYERS, HEADS, TOKENS, DIM = 6, 3, 2, 4, 8


def of(tensor: torch.Tensor, blocks: int = BLOCKS) -> Rows:
    return rows(tensor.shape, tensor.stride(), tensor.element_size(), blocks)


def half(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int16).reshape(shape)


def read(tensor: torch.Tensor, found: Rows, block: int) -> list[int]:
    """The block's elements, by the rows alone: from the memory that begins at the tensor's first element."""
    size = tensor.element_size()
    flat = torch.as_strided(
        tensor, (tensor.untyped_storage().nbytes() // size - tensor.storage_offset(),), (1,)
    )
    ends = [(offset + block * found.stride) // size for offset in found.offsets]
    return [int(value) for end in ends for value in flat[end : end + found.row_bytes // size]]


LAYOUTS = {
    "[blocks, ...]": half(BLOCKS, 2, TOKENS, HEADS, DIM),
    "[2, blocks, ...]": half(2, BLOCKS, TOKENS, HEADS, DIM),
    "heads before tokens": half(BLOCKS, 2, HEADS, TOKENS, DIM).permute(0, 1, 3, 2, 4),
    "keys and values outside": half(2, BLOCKS, HEADS, TOKENS, DIM).permute(1, 0, 3, 2, 4),
    "heads outside": half(HEADS, BLOCKS, TOKENS, DIM).permute(1, 0, 2, 3),
    "a layer of blocks of all layers": half(BLOCKS, LAYERS, HEADS, TOKENS, DIM)[:, 1],
    "a head of all layers' heads": half(BLOCKS, HEADS, LAYERS, TOKENS, DIM)[:, :, 1],
    "smaller blocks in the kernels": half(BLOCKS * 2, TOKENS, HEADS, DIM),
    "the same, keys and values apart": half(2, BLOCKS * 2, TOKENS, HEADS, DIM),
    "padded": half(BLOCKS, TOKENS, DIM + 3)[:, :, :DIM],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_element_of_a_block_once_and_none_of_another(name: str) -> None:
    tensor = LAYOUTS[name]
    found = of(tensor)
    axis = 0 if tensor.shape[0] % BLOCKS == 0 else 1
    several = tensor.shape[axis] // BLOCKS
    for block in range(BLOCKS):
        own = tensor.narrow(axis, block * several, several)
        assert sorted(read(tensor, found, block)) == sorted(own.flatten().tolist())


@pytest.mark.parametrize(
    ("name", "count", "row"),
    [
        ("[blocks, ...]", 1, 2 * TOKENS * HEADS * DIM * 2),
        ("[2, blocks, ...]", 2, TOKENS * HEADS * DIM * 2),
        ("heads before tokens", 1, 2 * TOKENS * HEADS * DIM * 2),
        ("heads outside", HEADS, TOKENS * DIM * 2),
        ("a layer of blocks of all layers", 1, HEADS * TOKENS * DIM * 2),
        ("smaller blocks in the kernels", 1, 2 * TOKENS * HEADS * DIM * 2),
        ("padded", TOKENS, DIM * 2),
    ],
)
def test_rows_are_as_long_as_they_can_be(name: str, count: int, row: int) -> None:
    found = of(LAYOUTS[name])
    assert (len(found.offsets), found.row_bytes) == (count, row)


@given(st.permutations(range(4)), st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_any_order_in_memory(order: list[int], shape: list[int]) -> None:
    shape[0] = 5
    inverse = [order.index(at) for at in range(4)]
    tensor = half(*(shape[at] for at in order)).permute(*inverse)
    found = of(tensor, 5)
    for block in range(5):
        assert sorted(read(tensor, found, block)) == sorted(tensor[block].flatten().tolist())


def test_what_is_no_paged_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="counts 7 blocks"):
        of(half(BLOCKS, 2, 8), 7)
    with pytest.raises(ValueError, match="over each other"):
        of(half(BLOCKS, 1, 8).expand(BLOCKS, 4, 8))
    with pytest.raises(ValueError, match="too scattered"):
        of(half(BLOCKS, 200, 16)[:, :, :8])
