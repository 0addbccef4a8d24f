"""Make the tiny model: a random Llama of 2.6 M parameters and its 512-token byte-level BPE.

Seeded, so that every machine gets the same weights and therefore the same tokens. Greedy decoding never ends by
itself and stays readable: the output rows of special tokens, and of those that are not printable text, are zero.
Files have the layout that transformers and vLLM load. Never downloads anything; needs numpy, safetensors, tokenizers.

    python -m tools.setup.tiny_model FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SEED = 20240821
VOCABULARY = 512
LAYERS = 4
HIDDEN = 256
FEED_FORWARD = 512
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 64
MAX_POSITIONS = 4096
#: Wide enough that the best token leads clearly: greedy output then survives small differences in rounding.
WEIGHT_SPREAD = 0.08
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

#: What the tokenizer learns its merges from; long enough to fill the vocabulary.
CORPUS = """
A galaxy is many small things that hold together. Each star keeps its own time and the whole still turns as one.
When nobody asks, nothing runs. When the first question arrives it is held at the door, and somewhere a process wakes.
The dispatcher knows where the request came from; the scheduler knows which node has room.
Prefill reads the prompt once and writes what it understood into blocks of memory, a key and a value for every token.
Decode takes those blocks and answers word by word, streaming each as soon as it is known. Nothing is computed twice.
A node declares what it can carry: processors, memory, devices. It admits what fits and refuses the rest.
If a part is lost the others notice, agree on a new view and go on. An epoch only grows; an old order is never obeyed.
Morning brings a burst of traffic, noon a steady stream, evening a slow decline, and at night it returns to zero.
Numbers such as 0, 1, 2, 3, 4, 5, 6, 7, 8 and 9 appear in logs, ports, limits and versions: 8080, 4096, 1000, 64, 32.
The quick brown fox jumps over the lazy dog while five boxing wizards judge my vow about sphinx, quartz and jade.
Measure first, then change one thing, then measure again; write down the machine, the load, the commit and the result.
What is the capital of this country? How far is the nearest star? Why does the sky look blue? Please explain briefly.
User and assistant take turns: hello, how are you, thank you, goodbye. System messages say how answers should sound.
"""


def train_tokenizer() -> Any:
    """A byte-level BPE with exactly VOCABULARY tokens, specials first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.strip().splitlines(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(
            f"tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}: lengthen CORPUS"
        )
    return tokenizer


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, in the order in which random numbers are drawn for them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes[f"{at}.self_attn.q_proj.weight"] = (HEADS * HEAD_DIM, HIDDEN)
        shapes[f"{at}.self_attn.k_proj.weight"] = (KV_HEADS * HEAD_DIM, HIDDEN)
        shapes[f"{at}.self_attn.v_proj.weight"] = (KV_HEADS * HEAD_DIM, HIDDEN)
        shapes[f"{at}.self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[f"{at}.mlp.gate_proj.weight"] = (FEED_FORWARD, HIDDEN)
        shapes[f"{at}.mlp.up_proj.weight"] = (FEED_FORWARD, HIDDEN)
        shapes[f"{at}.mlp.down_proj.weight"] = (HIDDEN, FEED_FORWARD)
        shapes[f"{at}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return shapes


def draw_weights(unreadable: list[int]) -> dict[str, Any]:
    """Every tensor in float32; norms are one, and the output rows of `unreadable` tokens are zero."""
    import numpy as np

    random = np.random.Generator(np.random.PCG64(SEED))
    weights: dict[str, Any] = {}
    for name, shape in weight_shapes().items():
        if len(shape) == 1:
            weights[name] = np.ones(shape, dtype=np.float32)
        else:
            weights[name] = (random.standard_normal(shape) * WEIGHT_SPREAD).astype(np.float32)
    weights["lm_head.weight"][unreadable] = 0.0
    return weights


def model_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def tokenizer_config() -> dict[str, Any]:
    bos, eos, pad = SPECIAL_TOKENS
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def make(folder: Path) -> None:
    """Write the model into `folder`, which is made if it is not there."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    texts = [tokenizer.decode([token], skip_special_tokens=False) for token in range(VOCABULARY)]
    specials = range(len(SPECIAL_TOKENS))
    unreadable = [
        n for n, text in enumerate(texts) if n in specials or not (text.isascii() and text.isprintable())
    ]
    save_file(draw_weights(unreadable), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in (
        ("config.json", model_config()),
        ("tokenizer_config.json", tokenizer_config()),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
