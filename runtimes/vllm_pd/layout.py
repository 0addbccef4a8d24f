"""The facts that make this engine's KV blocks interchangeable with another's, from its arguments and model files.

Known before the weights are loaded, so that a pair is refused long before a request wants it. A value is what the
user gave: `auto` on one side and the type that it stands for on the other count as different. Model files are
sampled, never read whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runtimes.transport.layout import MOST_TEXT, Layout

_SAMPLE = 64 << 10


def layout(args: Namespace, environ: Mapping[str, str] = os.environ) -> Layout:
    import vllm

    folder = Path(args.model)
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    named = None if folder.is_dir() else _text(args.model)
    return Layout(
        engine=_text(f"vllm {vllm.__version__}"),
        cpu=_cpu(),
        config=named or _digest([folder / "config.json"]),
        weights=named or _digest(weights),
        revision=_text(args.revision),
        hf_overrides=_text(args.hf_overrides),
        dtype=_text(args.dtype),
        quantization=_text(args.quantization),
        kv_cache_dtype=_text(args.kv_cache_dtype),
        block_size=args.block_size,
        attention_backend=_backend(args.attention_backend or args.attention_config.backend),
        cache_order=_text(environ.get("VLLM_KV_CACHE_LAYOUT")),
        kv_heads=kv_heads(folder),
        heads_apart=_heads_apart(),
        tensor_parallel=args.tensor_parallel_size,
        pipeline_parallel=args.pipeline_parallel_size,
    )


def kv_heads(folder: Path) -> int | None:
    """As the model's config says; None: it doesn't, or another folder's does. A latent cache counts as one head."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    config = config.get("text_config") or config
    if config.get("kv_lora_rank"):
        return 1
    found = config.get("num_key_value_heads") or config.get("num_attention_heads")
    return found if isinstance(found, int) and found > 0 else None


def _heads_apart() -> bool:
    """The CPU's attention has no other order; blocks of a GPU are sent whole, with all their layers."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _cpu() -> str:
    """AMX is apart: vLLM's CPU attention packs a block in another way for it. Of GPUs what backends are chosen by."""
    import torch
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        capability = current_platform.get_device_capability()
        return f"cuda {capability.as_version_str() if capability else ''}"
    amx = "+AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{torch.backends.cpu.get_cpu_capability()}{amx}"


def _backend(value: Any) -> str | None:
    """One argument gives a name, the other a member of vLLM's enum."""
    return _text(getattr(value, "name", value))


def _text(value: Any) -> str | None:
    """As it was given; the digest of what is too long for a fact."""
    if value is None or value == {}:
        return None
    text = json.dumps(value, sort_keys=True, default=str) if isinstance(value, dict) else str(value)
    return text if len(text) <= MOST_TEXT else hashlib.sha256(text.encode()).hexdigest()


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.exists():
            digest.update(_sample(path))
    return digest.hexdigest()[:16]


def _sample(path: Path) -> bytes:
    """Size, beginning and middle: tells two fine-tunes apart without reading all of them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_SAMPLE)
        file.seek(size // 2)
        return b"%d|" % size + head + file.read(_SAMPLE)
