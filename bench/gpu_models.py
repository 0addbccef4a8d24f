"""Models for the benches on a GPU that no repository has: random weights, written where they are asked for.

Tokens of random weights say nothing, but are the same ones whenever the same engine is asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tools.setup.tiny_model import WEIGHT_SPREAD, make

#: Of Llama-3-8B, but for its vocabulary, which is the tiny model's.
HIDDEN: Final = 4096
FEED_FORWARD: Final = 14336
HEADS: Final = 32
KV_HEADS: Final = 8
HEAD_DIM: Final = 128
#: Wide enough that greedy tokens differ from prompt to prompt.
SPREAD: Final = 0.02


def deep(folder: Path, layers: int, *, wide: bool = False) -> Path:
    """The tiny model with so many layers: behind its own the same again, with so little to say that its best token
    still leads clearly. `wide`: with as much KV a layer and token as Llama-3-8B, so 128 KiB a token at 32 layers.
    """
    from safetensors.numpy import load_file, save_file

    make(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    weights = load_file(folder / "model.safetensors")
    has, hidden = config["num_hidden_layers"], config["hidden_size"]
    config["num_hidden_layers"] = layers
    if wide:
        config |= {"num_attention_heads": KV_HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
        _widen(weights, hidden, KV_HEADS * HEAD_DIM)
    path.write_text(json.dumps(config))
    for name in [name for name in weights if name.startswith("model.layers.")]:
        head, number, rest = name.split(".", 3)[1:]
        for again in range(int(number) + has, layers, has):
            whisper = 0.02 if rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight") else 1
            weights[f"model.{head}.{again}.{rest}"] = weights[name] * weights[name].dtype.type(whisper)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _widen(weights: dict[str, Any], hidden: int, size: int) -> None:
    """Attention of that size in place of its own, seeded."""
    import numpy as np

    draw = np.random.Generator(np.random.PCG64(11))
    for name in sorted(name for name in weights if ".self_attn." in name):
        out = name.endswith("o_proj.weight")
        shape = (hidden, size) if out else (size, hidden)
        spread = WEIGHT_SPREAD * (hidden / size) ** 0.5 if out else WEIGHT_SPREAD
        weights[name] = (draw.standard_normal(shape) * spread).astype(np.float32)


def large(folder: Path, layers: int) -> Path:
    """436 MB a layer, at 16 bits."""
    import torch
    from safetensors.torch import save_file

    make(folder)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
    (folder / "config.json").write_text(json.dumps({**config, **sizes, "dtype": "bfloat16"}))
    (folder / "model.safetensors").unlink()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(8)

    def drawn(*shape: int, spread: float = SPREAD) -> Any:
        return (torch.randn(*shape, generator=draw, device=device) * spread).to(torch.bfloat16).cpu()

    vocabulary = int(config["vocab_size"])
    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    outer = {
        "model.embed_tokens.weight": drawn(vocabulary, HIDDEN, spread=1.0),
        "model.norm.weight": ones,
        "lm_head.weight": drawn(vocabulary, HIDDEN, spread=0.05),
    }
    index: dict[str, str] = {}
    for layer in range(-1, layers):
        at, file = f"model.layers.{layer}", f"model-{layer + 1:05}.safetensors"
        tensors = outer
        if layer >= 0:
            tensors = {
                f"{at}.self_attn.q_proj.weight": drawn(HEADS * HEAD_DIM, HIDDEN),
                f"{at}.self_attn.k_proj.weight": drawn(KV_HEADS * HEAD_DIM, HIDDEN),
                f"{at}.self_attn.v_proj.weight": drawn(KV_HEADS * HEAD_DIM, HIDDEN),
                f"{at}.self_attn.o_proj.weight": drawn(HIDDEN, HEADS * HEAD_DIM),
                f"{at}.mlp.gate_proj.weight": drawn(FEED_FORWARD, HIDDEN),
                f"{at}.mlp.up_proj.weight": drawn(FEED_FORWARD, HIDDEN),
                f"{at}.mlp.down_proj.weight": drawn(HIDDEN, FEED_FORWARD),
                f"{at}.input_layernorm.weight": ones.clone(),
                f"{at}.post_attention_layernorm.weight": ones.clone(),
            }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    facts = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(facts))
    return folder
