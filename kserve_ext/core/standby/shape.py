"""Whether a shaped engine (S1) can become a service's: their configurations are one, but for what weights bring.

A configuration is a flat mapping of dotted names to text, as the runtime tells it (runtimes/vllm_pd/shape_facts.py).
Everything counts that isn't known to be free: a name that a new release adds makes two engines differ until somebody
has thought about it. Never reads a file; the caller brings both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

#: What comes with a service, and is taken over with its weights.
FREE: Final = (
    # where it lies and what it is called
    "model_config.model",
    "model_config.tokenizer",
    "model_config.served_model_name",
    # what only those look at who speak HTTP, and they are made anew for each service
    "model_config.tokenizer_mode",
    "model_config.skip_tokenizer_init",
    "model_config.generation_config",
    "model_config.override_generation_config",
    "model_config.max_logprobs",
    "model_config.allowed_local_media_path",
    "model_config.allowed_media_domains",
    "structured_outputs_config.*",
    # what a config.json says besides the model
    "*.hf_config.transformers_version",
    "*.hf_config._name_or_path",
    "*.hf_config.bos_token_id",
    "*.hf_config.eos_token_id",
    "*.hf_config.pad_token_id",
    "*.hf_config.id2label",
    "*.hf_config.label2id",
    # the same config.json once more
    "*.hf_text_config.*",
    # the shaped engine reads none
    "load_config.load_format",
    "load_config.use_tqdm_on_load",
    # names of a run
    "instance_id",
    "kv_transfer_config.engine_id",
)

#: What an engine must be so that weights can be put into it, and why nothing else can be.
_REQUIRED: Final = (
    ("model_config.quantization", ("None",), "quantised weights are made while a model is loaded"),
    ("quant_config", ("None",), "quantised weights are made while a model is loaded"),
    ("model_config.multimodal_config", ("None",), "its processors belong to one model"),
    ("model_config.word_embeddings_untied_by_checkpoint", ("False",), "its files decide about its layers"),
    ("lora_config", ("None",), "adapters belong to one model"),
    ("speculative_config", ("None",), "the draft model would need weights, too"),
    ("parallel_config.tensor_parallel_size", ("1",), "each rank would load its own part"),
    ("parallel_config.pipeline_parallel_size", ("1",), "each stage would load its own part"),
    ("parallel_config.data_parallel_size", ("1",), "each engine would load its own weights"),
)

#: Of a service: its weights are read as files of tensors.
_FORMATS: Final = ("'auto'", "'hf'", "'safetensors'")


class Difference(NamedTuple):
    """Why it can't be: `field` in a person's words, and what both sides have there ("" = nothing)."""

    field: str
    shaped: str
    asked: str

    @property
    def reason(self) -> str:
        return f"the engine has {self.shaped or 'nothing'}, the service {self.asked or 'nothing'}"


def difference(shaped: Mapping[str, str], asked: Mapping[str, str]) -> Difference | None:
    """None: an engine of `shaped` that is given the weights of `asked` is what a start with `asked` would have made.

    Of several the one that is likely to be the cause: config.json before arguments, and what follows of both last.
    """
    load_format = asked.get("load_config.load_format", "")
    if load_format and load_format not in _FORMATS:
        return Difference("--load-format", "'auto'", load_format)
    names = [
        name
        for name in shaped.keys() | asked.keys()
        if shaped.get(name, "") != asked.get(name, "") and not is_free(name)
    ]
    if not names:
        return None
    name = min(names, key=lambda name: (_rank(name), name))
    return Difference(spoken(name), shaped.get(name, ""), asked.get(name, ""))


def unshapeable(facts: Mapping[str, str]) -> Difference | None:
    """Why no engine of this configuration can be started ahead; None: it can."""
    for name, allowed, why in _REQUIRED:
        if name in facts and facts[name] not in allowed:
            return Difference(spoken(name), f"to have {' or '.join(allowed)} ({why})", facts[name])
    return None


def is_free(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in FREE)


def spoken(name: str) -> str:
    """As people wrote it: config.json and its key, an environment variable, or an argument."""
    section, _, rest = name.partition(".")
    for part in ("hf_config", "hf_text_config"):
        if f".{part}." in f".{name}":
            return f"config.json: {name.split(f'{part}.', 1)[1]}"
    if section == "env":
        return rest
    return "--" + name.rpartition(".")[2].lstrip("_").replace("_", "-")


def _rank(name: str) -> int:
    order = (
        "env.",
        "args.",
        "model_config.hf_config.",
        "model_config.",
        "cache_config.",
        "parallel_config.",
        "scheduler_config.",
    )
    return next((rank for rank, prefix in enumerate(order) if name.startswith(prefix)), len(order))
