"""Which arguments a standby pod's shaped engine is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.vllm_pd.shape_place import NoShape, shape_arguments

S1 = {"GALAXY_SLOT_LEVEL": "S1", "GALAXY_SLOT_SHAPE": '["--dtype", "float32"]'}


def test_only_pods_of_that_level_keep_one(tmp_path: Path) -> None:
    assert shape_arguments({}, tmp_path) is None
    assert shape_arguments({**S1, "GALAXY_SLOT_LEVEL": "S0"}, tmp_path) is None


@pytest.mark.parametrize("text", ['["--model", "/a b", "--dtype=float32"]', "--model '/a b' --dtype=float32"])
def test_json_and_command_lines_are_read(text: str, tmp_path: Path) -> None:
    given = {**S1, "GALAXY_SLOT_SHAPE": text}
    assert shape_arguments(given, tmp_path) == ["--model", "/a b", "--dtype=float32"]


def test_a_config_is_looked_for_where_claims_are_mounted(tmp_path: Path) -> None:
    for folder in ("models/b", "models/a/deep", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models/a/deep/config.json").touch()
    assert shape_arguments(S1, tmp_path) == ["--dtype", "float32", "--model", str(tmp_path / "models/a/deep")]
    (tmp_path / "models/b/config.json").touch()
    assert shape_arguments(S1, tmp_path) == ["--dtype", "float32", "--model", str(tmp_path / "models/b")]
    named = {**S1, "GALAXY_SLOT_CONFIG": "/shape"}
    assert shape_arguments(named, tmp_path) == ["--dtype", "float32", "--model", "/shape"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoShape, match="GALAXY_SLOT_CONFIG"):
        shape_arguments(S1, tmp_path)
    with pytest.raises(NoShape, match="GALAXY_SLOT_SHAPE"):
        shape_arguments({**S1, "GALAXY_SLOT_SHAPE": '["'}, tmp_path)
