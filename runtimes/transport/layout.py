"""What two engines must have in common for the KV blocks of one to be of use to the other, fact by fact. Pure.

A block is opaque: nothing in its bytes says how they are to be read. So each side names what decides that, within
bounds that the decoder checks, and a pair is refused with every fact that differs, both values and the remedy.
Whoever fills a layout says only what it knows before its weights are loaded; None equals nothing but None.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

MOST_TEXT: Final = 128  # characters of one fact
_Text = Annotated[str, msgspec.Meta(max_length=MOST_TEXT)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


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
    tensor_parallel: _Count = 1
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
    "tensor_parallel": "set --tensor-parallel-size equal",
    "pipeline_parallel": "set --pipeline-parallel-size equal",
}


def differences(prefill: Layout, decode: Layout) -> list[str]:
    """Each fact that differs, with both values and the remedy; none: blocks of one are blocks of the other."""
    pairs = ((name, getattr(prefill, name), getattr(decode, name)) for name in Layout.__struct_fields__)
    return [
        f"{name}: {_shown(here)} at prefill, {_shown(there)} at decode; {REMEDIES[name]}"
        for name, here, there in pairs
        if here != there
    ]


def _shown(value: str | int | None) -> str:
    return "not set" if value is None else ascii(value)  # of a peer: nothing in it may act on a terminal
