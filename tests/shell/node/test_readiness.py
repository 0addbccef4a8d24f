"""What the agent reads in an instance's status file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoscaler_shim.node.readiness import read_status

READY = {"phase": "ready", "pid": 4, "port": 80, "events": [{"name": "ready", "at": 1.5}], "error": None}


def test_what_an_instance_says_of_its_channels_is_passed_on(tmp_path: Path) -> None:
    kv = {"pairs": [{"peer": "p-1", "state": "up"}]}
    (tmp_path / "status.json").write_text(json.dumps({**READY, "kv": kv}))
    said = read_status(tmp_path)
    assert said is not None
    assert (said.phase, said.port, said.kv) == ("ready", 80, kv)


@pytest.mark.parametrize("more", [{}, {"kv": None}, {"kv": "up"}])
def test_one_that_says_nothing_of_them_is_read_as_well(tmp_path: Path, more: dict[str, object]) -> None:
    (tmp_path / "status.json").write_text(json.dumps({**READY, **more}))
    said = read_status(tmp_path)
    assert said is not None
    assert said.kv is None
