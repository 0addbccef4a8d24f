"""What two engines must have in common for the KV blocks of one to be of use to the other, fact by fact. Pure.

A block is opaque: nothing in its bytes says how they are to be read. So each side names what decides that, within
bounds that the decoder checks, and a pair is refused with every fact that differs, both values and the remedy.
Degrees of tensor parallelism may differ where the heads of each rank are whole parts of the other side's blocks.
Whoever fills a layout says only what it knows before its weights are loaded; None equals nothing but None.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from kserve_ext.core.kv_ranks import Indivisible, held, parts

MOST_TEXT: Final = 128  # characters of one fact
_Text = Annotated[str, msgspec.Meta(max_length=MOST_TEXT)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
MOST_RANKS: Final = 1024
_Degree = Annotated[int, msgspec.Meta(ge=1, le=MOST_RANKS)]  # whoever compares looks at each rank


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """In the order in which differences are told: causes before what follows from them."""

    engine: _Text | None = None  # name and version
    cpu: _Text | None = None  # instruction sets: the CPU backend orders a block's inside by them
    config: _Text | None = None  # digest of the model's configuration
    weights: _Text | None = None  # digest of its tensors
    revision: _Text | None = None
    hf_overrides: _Text | None = None
    dtype: _Text | None = None
    quantization: _Text | None = None
    kv_cache_dtype: _Text | None = None
    block_size: _Count | None = None  # tokens; None: the engine's default
    attention_backend: _Text | None = None
    cache_order: _Text | None = None
    kv_heads: _Count | None = None  # of the model, over all ranks
    heads_apart: bool = (
        False  # within a block heads lie behind each other, layer by layer: parts of it can be sent
    )
    tensor_parallel: _Degree = 1
    pipeline_parallel: _Count = 1


#: By field, what makes the two sides equal.
REMEDIES: Final = {
    "engine": "run both from one image",
    "cpu": "run both on nodes with the same CPU features",
    "config": "give both the same config.json (--model)",
    "weights": "give both the same weights (--model)",
    "revision": "set --revision equal",
    "hf_overrides": "set --hf-overrides equal",
    "dtype": "set --dtype equal",
    "quantization": "set --quantization equal",
    "kv_cache_dtype": "set --kv-cache-dtype equal",
    "block_size": "set --block-size equal",
    "attention_backend": "set --attention-backend equal",
    "cache_order": "set VLLM_KV_CACHE_LAYOUT equal",
    "kv_heads": "give both the same config.json (--model)",
    "heads_apart": "run both on the same kind of device",
    "tensor_parallel": "set --tensor-parallel-size equal",
    "pipeline_parallel": "set --pipeline-parallel-size equal",
}


def differences(prefill: Layout, decode: Layout) -> list[str]:
    """Each fact that differs, with both values and the remedy; none: blocks of one are blocks of the other."""
    told: list[str] = []
    for name in Layout.__struct_fields__:
        here, there = getattr(prefill, name), getattr(decode, name)
        if name == "tensor_parallel":
            told += _degrees(prefill, decode)
        elif here != there:
            told.append(f"{name}: {_shown(here)} at prefill, {_shown(there)} at decode; {REMEDIES[name]}")
    return told


def _degrees(prefill: Layout, decode: Layout) -> list[str]:
    """Why ranks of different degrees can't exchange parts of blocks."""
    here, there = prefill.tensor_parallel, decode.tensor_parallel
    if here == there or prefill.kv_heads != decode.kv_heads:
        return []  # the second is told already
    why = f"tensor_parallel: {here} at prefill, {there} at decode"
    if prefill.kv_heads is None:
        return [f"{why}; {REMEDIES['tensor_parallel']}"]
    try:
        exchanged = parts(prefill.kv_heads, here, there)
    except Indivisible as error:
        return [str(error)]
    most = max(held(prefill.kv_heads, degree, 0).stop for degree in (here, there))
    if any(part.heads < most for part in exchanged) and not (prefill.heads_apart and decode.heads_apart):
        return [f"{why}; parts of these blocks can't be sent: {REMEDIES['tensor_parallel']}"]
    return []


def _shown(value: str | int | None) -> str:
    return "not set" if value is None else ascii(value)  # of a peer: nothing in it may act on a terminal
