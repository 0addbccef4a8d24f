"""`galaxy kv bench` over a device: between two processes, one at each end of the wire."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rdma.machine import Nics
from tests.rdma.serving import environ, serving

MTU = 4096
SIZE = 2 << 20
BENCH = (sys.executable, "-m", "kserve_ext.cli", "kv", "bench")


@pytest.fixture
def served(nics: Nics, key: Path) -> Iterator[str]:
    with serving(BENCH, key) as addr:
        yield addr


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
