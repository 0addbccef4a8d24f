"""Pages: every layout of vLLM's, byte for byte, or the reason why it can't be transferred."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.kv_pages import Pages, Scattered, Strided, pages

BASE, ITEM = 4096, 2
#: vLLM's layouts: in which order layer, block, head, token and content lie in memory
TOGETHER = ["LBHNC", "LBNHC", "BLHNC", "BLNHC"]
APART = ["LHBNC", "BHLNC"]


def cache(
    order: str, layers: int, blocks: int, heads: int, tokens: int = 3, content: int = 4
) -> dict[str, Strided]:
    sizes = {"L": layers, "B": blocks, "H": heads, "N": tokens, "C": content}
    strides, step = {}, 1
    for dimension in reversed(order):
        strides[dimension] = step
        step *= sizes[dimension]
    shape = [sizes[d] for d in "BHNC"]
    return {
        f"layer.{at}": Strided(BASE + at * strides["L"] * ITEM, shape, [strides[d] for d in "BHNC"], ITEM)
        for at in range(layers)
    }


def addresses(tensor: Strided, block: int) -> list[int]:
    """Of every element of a block, sorted."""
    ranges = [range(size) for size in tensor.shape[1:]]
    return sorted(
        tensor.address + ITEM * sum(i * s for i, s in zip((block, *index), tensor.strides, strict=True))
        for index in product(*ranges)
    )


@given(st.sampled_from(TOGETHER), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_a_block_is_all_of_its_bytes_and_no_others(order: str, layers: int, blocks: int, heads: int) -> None:
    tensors = cache(order, layers, blocks, heads)
    found = pages(tensors, blocks)
    assert found.layers == layers
    for block in range(blocks):
        runs = [
            range(region + block * found.block_bytes, region + (block + 1) * found.block_bytes, ITEM)
            for region in found.regions
        ]
        held = sorted(address for tensor in tensors.values() for address in addresses(tensor, block))
        assert sorted(address for run in runs for address in run) == held


def test_layers_of_a_block_that_lie_together_are_one_region() -> None:
    assert pages(cache("BLHNC", 3, 5, 2), 5) == Pages((BASE,), 3 * 2 * 3 * 4 * ITEM, 3, 0)
    assert len(pages(cache("LBHNC", 3, 5, 2), 5).regions) == 3


@pytest.mark.parametrize(("order", "heads"), [("LBHNC", 2), ("LBNHC", 0)])
def test_whether_heads_lie_behind_each_other(order: str, heads: int) -> None:
    assert pages(cache(order, 3, 5, 2), 5).heads == heads


@pytest.mark.parametrize("order", APART)
def test_blocks_whose_bytes_lie_apart_are_refused(order: str) -> None:
    with pytest.raises(Scattered, match=r"layer\.0: a block is not one run|neither layers nor blocks"):
        pages(cache(order, 3, 5, 2), 5)


def test_a_backend_may_make_several_blocks_of_one() -> None:
    found = pages(cache("LBHNC", 2, 12, 2), 3)
    assert found.heads == 0
    assert found.block_bytes == 4 * pages(cache("LBHNC", 2, 12, 2), 12).block_bytes
    with pytest.raises(Scattered, match="one run"):
        pages(cache("LBHNC", 2, 12, 2), 5)
    with pytest.raises(Scattered, match="4 parts of a block"):
        pages(cache("BLHNC", 2, 12, 2), 3)


def test_layers_of_different_sizes_are_refused() -> None:
    mixed = cache("LBHNC", 1, 4, 2) | {"other": cache("LBHNC", 1, 4, 3)["layer.0"]}
    with pytest.raises(Scattered, match="differ in size"):
        pages(mixed, 4)
