"""The command where nothing is usable: what it prints, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kserve_ext.cli.__main__ import main
from kserve_ext.cli.rdma import reading
from tests.cli.rdma.trees import connectx

READ = reading.read


@pytest.fixture(autouse=True)
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a card, and without pyverbs."""

    def verbs() -> None:
        raise ImportError("No module named 'pyverbs'")

    for name in ("GALAXY_RDMA_DEVICES", "GALAXY_RDMA_NETWORK", "GALAXY_CLUSTER_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    connectx(tmp_path)
    monkeypatch.setattr(reading, "read", lambda **more: READ(tmp_path, {}, **{**more, "pfc": None}))
    monkeypatch.setattr(reading, "ask_verbs", verbs)


def galaxy(*words: str) -> Result:
    return CliRunner().invoke(main, ["doctor", "rdma", *words])


def test_a_table_then_each_check_with_its_remedy() -> None:
    done = galaxy()
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0].split()[:4] == ["DEVICE", "PORT", "LINK", "STATE"]
    assert lines[1].split()[:4] == ["mlx5_0", "1", "ethernet", "ACTIVE"]
    assert "FAILED   nothing is usable for KV over RDMA" in lines
    assert any(line.startswith("         do: apt install") for line in lines)
    failed = sum(line.startswith("FAILED ") for line in lines) - 1  # the first one sums up the others
    assert f"error: {failed} of " in done.stderr


def test_json_has_the_same() -> None:
    done = galaxy("--output", "json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert [port["device"] for port in said["ports"]] == ["mlx5_0", "mlx5_1"]
    assert said["checks"][0]["level"] == "failed"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--serve", "--peer", "127.0.0.1:1"), 2, "--serve is for one machine"),
        (("--peer", "192.0.2.1:x"), 2, "is not HOST:PORT"),
        (("--peer", "192.0.2.1:18599"), 1, "no cluster key"),
        (("--serve",), 1, "no cluster key"),
        (("--peer", "127.0.0.1", "--key-file", "SHORT"), 1, "too short"),
    ],
)
def test_refusals(tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    (tmp_path / "short").write_bytes(b"short")
    given = [str(tmp_path / "short") if word == "SHORT" else word for word in words]
    done = galaxy("--data", str(tmp_path), *given)
    assert done.exit_code == code
    assert says in done.output


def test_a_network_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_RDMA_NETWORK", "ten")
    done = galaxy()
    assert done.exit_code == 1
    assert "GALAXY_RDMA_NETWORK" in done.output
