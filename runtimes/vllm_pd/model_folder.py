"""Whether a model folder can be served at all, from its small files: config, tokenizer, heads of the weights.

Runs before the engine is built, because the engine names the layer that failed where a person needs the file.
Never reads weights, and never refuses what it doesn't understand: that remains the engine's judgement.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from runtimes.vllm_pd.status import StartRefused

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "spiece.model")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def check_model_folder(model: str, *, needs_tokenizer: bool = True) -> None:
    """Raises StartRefused naming the file; returns for a folder that looks whole, and for a name of a hub."""
    folder = Path(model)
    if not folder.exists():
        if model.startswith(("/", ".", "~")):
            raise StartRefused(
                f"model folder {model} does not exist",
                "--model",
                "give the folder that holds config.json, or check storageUri and its mount",
            )
        return
    if folder.is_file():
        return
    _check_config(folder)
    if needs_tokenizer and not any((folder / name).exists() for name in _TOKENIZERS):
        raise StartRefused(
            f"{model} has no tokenizer ({', '.join(_TOKENIZERS[:3])})",
            "--model",
            "add the tokenizer's files, or pass --tokenizer",
        )
    weights = [path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    if not weights:
        raise StartRefused(
            f"{model} has no weights ({', '.join(_WEIGHTS)})", "--model", "copy the model again, completely"
        )
    for path in weights:
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def architectures(model: str) -> list[str]:
    """What config.json says the model is; nothing for a name of a hub."""
    path = Path(model) / "config.json"
    named = json.loads(path.read_text()).get("architectures") if path.is_file() else None
    return [str(name) for name in named] if isinstance(named, list) else []


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.exists() and not (folder / "params.json").exists():
        raise StartRefused(
            f"{folder} has no config.json", "--model", "give the folder that holds the model's config.json"
        )
    if path.exists():
        try:
            config = json.loads(path.read_text())
        except (ValueError, UnicodeDecodeError) as error:
            raise StartRefused(f"{path} is not JSON: {error}", "--model", "copy the model again") from error
        if not isinstance(config, dict):
            raise StartRefused(f"{path} is not a JSON object", "--model", "copy the model again")


def _check_safetensors(path: Path) -> None:
    """The head of a safetensors file says where its last tensor ends: a shorter file was cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        head = file.read(length) if length < min(size, 100 << 20) else b""
    try:
        tensors = json.loads(head)
        ends = [int(t["data_offsets"][1]) for name, t in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartRefused(
            f"{path} has no valid safetensors header", "--model", "copy the file again"
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise StartRefused(
            f"{path} is cut off: {size} of {expected} bytes", "--model", "copy the file again, completely"
        )
