"""`galaxy kv bench` over a device: between two processes, one at each end of the wire."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rdma.machine import Nics

MTU = 4096
SIZE = 2 << 20
BENCH = (sys.executable, "-m", "kserve_ext.cli", "kv", "bench")


def environ(device: str) -> dict[str, str]:
    return {**os.environ, "GALAXY_RDMA_DEVICES": device}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.key"
    path.write_bytes(b"k" * 32)
    return path


@pytest.fixture
def served(nics: Nics, key: Path) -> Iterator[str]:
    command = [*BENCH, "--serve", "--host", "127.0.0.1", "--port", "0", "--key-file", str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ(nics.far)) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[2].rstrip(";")
        finally:
            process.kill()


@pytest.mark.parametrize("rung", ["rdma", "rdma-staged"])
def test_a_rung_over_the_wire(nics: Nics, served: str, key: Path, rung: str) -> None:
    sent = nics.packets_sent(nics.far)
    words = [
        "--rung",
        rung,
        "--peer",
        served,
        "--key-file",
        str(key),
        "--bytes",
        str(SIZE),
        "--block",
        "64Ki",
    ]
    done = subprocess.run(
        [*BENCH, *words, "--seconds", "1", "-o", "json"],
        capture_output=True,
        text=True,
        env=environ(nics.near),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert (got["rung"], got["device"], got["intact"]) == (rung, "rxe1:1", True)
    assert got["mb_s"] > 0
    least = (got["transfers"] + 2 + 3) * SIZE  # and those that were looked at, and those one at a time
    assert nics.packets_sent(nics.far) - sent >= least // MTU
