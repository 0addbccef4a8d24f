"""KV memory over real tensors: a block's bytes are the tensors' own, in either order of layers and blocks."""

from __future__ import annotations

import pytest

from runtimes.vllm_pd.kv_memory import KvMemory

pytestmark = pytest.mark.engine

LAYERS, BLOCKS, HEADS, TOKENS, CONTENT = 3, 5, 2, 4, 8


@pytest.mark.parametrize("order", ["LBHNC", "BLHNC"])
def test_a_view_is_the_tensors_own_bytes(order: str) -> None:
    import torch

    shape = (LAYERS, BLOCKS) if order == "LBHNC" else (BLOCKS, LAYERS)
    whole = torch.arange(LAYERS * BLOCKS * HEADS * TOKENS * CONTENT, dtype=torch.float32)
    cache = whole.view(*shape, HEADS, TOKENS, CONTENT)
    layers = [cache[at] if order == "LBHNC" else cache[:, at] for at in range(LAYERS)]
    memory = KvMemory()
    memory.register({f"layer.{at}": layer for at, layer in enumerate(layers)}, BLOCKS)
    assert (memory.layers, memory.heads) == ((LAYERS, HEADS) if order == "LBHNC" else (1, 0))
    for block in range(BLOCKS):
        views = [memory.view(layer, block, 1) for layer in range(memory.layers)]
        sent = b"".join(view for view in views if isinstance(view, memoryview))
        assert sent == b"".join(layer[block].numpy().tobytes() for layer in layers)
        for view in views:
            assert isinstance(view, memoryview)
            view[:] = bytes(memory.block_bytes)
        assert not any(layer[block].any() for layer in layers)


def test_views_end_with_the_cache() -> None:
    import torch

    memory = KvMemory()
    memory.register({"layer.0": torch.zeros(BLOCKS, HEADS, TOKENS, CONTENT)}, BLOCKS)
    with pytest.raises(ValueError, match="no blocks 4"):
        memory.view(0, BLOCKS - 1, 2)
