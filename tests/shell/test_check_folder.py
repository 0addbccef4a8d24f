"""What `apply` says of a model folder before anything is started from it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from autoscaler_shim.objects.server import check_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    head = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(16))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_a_whole_model(folder: Path) -> None:
    assert check_folder(str(folder), True) == ""


def test_weights_that_are_cut_off_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    wrong = check_folder(str(folder), True)
    assert f"{weights} has" in wrong
    assert "its head says" in wrong


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_texts_that_are_broken_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"a": ')
    assert f"{folder / name} is not JSON" in check_folder(str(folder), True)
    (folder / name).write_text("[]")
    assert f"{folder / name} is not a JSON object" in check_folder(str(folder), True)


def test_no_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in check_folder(str(folder), True)
    assert check_folder(str(folder / "none"), True) == f"no such folder: {folder / 'none'}"
    assert "is not a folder" in check_folder(str(folder / "tokenizer.json"), True)


def test_what_another_runtime_needs_is_not_known_here(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert check_folder(str(folder), False) == ""
    assert check_folder(str(folder / "none"), False) != ""
