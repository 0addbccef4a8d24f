"""Whether a model folder is whole, from names, sizes and the heads of its weights; never reads weights.

The list of files with their sizes and times (the manifest) tells one state of a folder from another, so that a
model changed in place is fetched anew. What can't be served says which file, why, and what to do.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import NamedTuple

from kserve_ext.fluid.preload import ModelUnavailable, ModelUnusable

MAX_HEAD = 100 * 1024 * 1024
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class ModelMissing(ModelUnusable):
    """There is no such folder."""


class File(NamedTuple):
    name: str  # relative to the folder
    size: int
    mtime_ns: int


def manifest(folder: Path) -> tuple[File, ...]:
    """All files below the folder, in order of name. Raises ModelUnusable when there is nothing to serve."""
    try:
        if not folder.exists():
            raise ModelMissing(
                f"model folder {folder} does not exist on this node: correct storageUri, or put the model there"
            )
        if not folder.is_dir():
            raise ModelUnusable(
                f"{folder} is not a folder: storageUri must name the folder that holds the model"
            )
        files = []
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                facts = path.stat()
                files.append(File(str(path.relative_to(folder)), facts.st_size, facts.st_mtime_ns))
    except PermissionError as error:
        raise ModelUnusable(f"{error.filename} can't be read: give the node's user read access") from error
    except OSError as error:
        raise ModelUnavailable(f"{folder} can't be listed: {error}") from error
    if not files:
        raise ModelUnusable(f"model folder {folder} is empty: put the model there, or correct storageUri")
    return tuple(files)


def check(folder: Path, files: tuple[File, ...], *, transformer: bool = False) -> None:
    """Raises ModelUnusable. `transformer`: it will be served by our own runtime, which needs config.json."""
    names = {file.name for file in files}
    weights = [file for file in files if file.name.endswith(".safetensors")]
    if "config.json" in names:
        _check_object(folder / "config.json")
    elif transformer and "params.json" not in names and not any(n.endswith(".gguf") for n in names):
        raise ModelUnusable(
            f"model folder {folder} has no config.json: storageUri must name the folder that holds the model's "
            "config.json and weights"
        )
    for file in weights:
        _check_safetensors(folder / file.name, file.size)


def check_tokenizer(folder: Path) -> None:
    """Raises ModelUnusable. Apart from check(), since a tokenizer may take longer to read than a start may wait."""
    for name in TOKENIZER:
        if (folder / name).is_file():
            _check_object(folder / name)


def _check_object(path: Path) -> None:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelUnusable(
            f"{path} can't be read: {error.strerror}; give the node's user read access"
        ) from error
    except ValueError as error:
        raise ModelUnusable(f"{path} is not JSON ({error}): copy the model again") from error
    if not isinstance(found, dict):
        raise ModelUnusable(f"{path} is not a JSON object: copy the model again")


def _check_safetensors(path: Path, size: int) -> None:
    """The file begins with the length of its head; the head says where the last tensor ends."""
    remedy = "copy the model again, completely"
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEAD + 1
            if length > min(MAX_HEAD, size - 8):
                raise ModelUnusable(f"{path} is cut off or not a safetensors file ({size} bytes): {remedy}")
            tensors = json.loads(file.read(length))
            ends = [int(t["data_offsets"][1]) for name, t in tensors.items() if name != "__metadata__"]
    except OSError as error:
        raise ModelUnusable(
            f"{path} can't be read: {error.strerror}; give the node's user read access"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelUnusable(f"{path} has an unreadable safetensors head ({error}): {remedy}") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelUnusable(f"{path} has {size} bytes, its head says {expected}: {remedy}")
