"""`galaxy doctor rdma` where there are devices: what it says of them, and a link test between two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rdma.machine import Nics
from tests.rdma.serving import environ, serving

LEAST_CARRIED = 16 << 20  # what is written to see whether bytes stay intact
DOCTOR = (sys.executable, "-m", "kserve_ext.cli", "doctor", "rdma")


def ask(device: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DOCTOR, *words], capture_output=True, text=True, env=environ(device), check=False)


@pytest.fixture
def served(nics: Nics, key: Path) -> Iterator[str]:
    """The address of a side that serves, at the far end of the wire."""
    with serving(DOCTOR, key) as addr:
        yield addr


def test_every_device_is_told_and_the_wanted_ones_are_usable() -> None:
    done = ask("rxe2,rxe0", "--output", "json")
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    ports = {port["device"]: port for port in said["ports"]}
    assert {name: port["usable"] for name, port in ports.items()} == {
        "rxe0": "yes",
        "rxe1": "no",
        "rxe2": "yes",
    }
    assert ports["rxe2"]["address"] == "198.51.100.2"
    assert (ports["rxe2"]["interface"], ports["rxe2"]["mtu"]) == ("rd2", "4096 of 9000")
    assert said["checks"][0]["what"] == "usable for KV, best first: rxe2:1, rxe0:1"


def test_bandwidth_and_latency_between_two_processes(nics: Nics, served: str, key: Path) -> None:
    before = [nics.packets_sent(name) for name in (nics.near, nics.far)]
    done = ask(nics.near, "--peer", served, "--key-file", str(key), "-o", "json")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert (got["device"], got["peer_device"], got["intact"]) == ("rxe1:1", "rxe2", True)
    assert all(got[name] > 0 for name in ("write_mb_s", "read_mb_s", "message_us"))
    for name, was in zip((nics.near, nics.far), before, strict=True):
        assert nics.packets_sent(name) - was >= LEAST_CARRIED // got["mtu"]


def test_another_key_and_no_device_are_refused(nics: Nics, served: str, key: Path) -> None:
    key.write_bytes(b"another" * 5)
    other = ask(nics.near, "--peer", served, "--key-file", str(key))
    assert other.returncode == 1
    assert "another cluster key" in other.stderr
    nothing = ask("mlx5_0", "--peer", served, "--key-file", str(key))
    assert nothing.returncode == 1
    assert "mlx5_0 is not here" in nothing.stderr


def test_a_device_whose_file_is_not_here_leaves_the_others_usable() -> None:
    """As in a container that was given some of a node's devices, but sees them all."""
    names = Path("/sys/class/infiniband_verbs").glob("uverbs*")
    (name,) = [each.name for each in names if (each / "ibdev").read_text().strip() == "rxe0"]
    file = Path("/dev/infiniband", name)
    file.rename(file.with_suffix(".away"))
    try:
        done = ask("", "--output", "json")
    finally:
        file.with_suffix(".away").rename(file)
    assert done.returncode == 0, done.stderr
    said = {check["what"]: check["level"] for check in json.loads(done.stdout)["checks"]}
    assert said["usable for KV, best first: rxe1:1, rxe2:1"] == "ok"
    assert said[f"rxe0: /dev/infiniband/{name} is not here, or may not be opened"] == "warning"
