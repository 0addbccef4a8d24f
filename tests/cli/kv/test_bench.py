"""`galaxy kv bench` as a person runs it: what it measures, and what it says of a rung that can't be had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kserve_ext.cli.__main__ import main
from kserve_ext.cli.kv import bench as side

SMALL = ("--bytes", "1Mi", "--block", "64Ki", "--seconds", "0.2")


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["kv", "bench", *words])


@pytest.mark.parametrize("rung", ["shm", "tcp"])
@pytest.mark.parametrize("more", [(), ("--scattered",)])
def test_a_rung_between_two_processes(rung: str, more: tuple[str, ...]) -> None:
    done = run("--rung", rung, *SMALL, *more, "-o", "json")
    assert done.exit_code == 0, done.output
    got = json.loads(done.stdout)
    assert (got["rung"], got["device"], got["intact"]) == (rung, "", True)
    assert (got["block_bytes"], got["transfer_bytes"]) == (64 << 10, 1 << 20)
    assert got["transfers"] >= 2
    measured = ("mb_s", "transfer_ms", "block_us", "cpu_s_per_gib", "peer_cpu_s_per_gib")
    assert all(got[name] > 0 for name in measured)
    assert got["transfer_p99_ms"] >= got["transfer_ms"]


def test_a_transfer_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.vllm_pd.peers.LEAST_TRANSFER_S", -1.0)  # as if a second had passed
    done = run("--rung", "shm", *SMALL)
    assert done.exit_code == 0, done.output


def test_for_people() -> None:
    done = run("--rung", "shm", *SMALL)
    assert done.exit_code == 0, done.output
    first, *lines = done.stdout.splitlines()
    assert first == "shm between two processes of this machine, 16 blocks of 65536 bytes a transfer"
    assert [line.split()[0] for line in lines] == [
        "WHAT",
        "bandwidth",
        "transfer",
        "one",
        "CPU",
        "CPU",
        "bytes",
    ]


def test_bytes_that_change_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side, "contents", lambda size: b"\1" * size)
    done = run("--rung", "shm", *SMALL)
    assert done.exit_code == 1
    assert "CHANGED" in done.stdout
    assert "bytes changed on the way" in done.stderr


def test_a_rung_that_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_RDMA_DEVICES", "gone0")
    done = run("--rung", "rdma", *SMALL)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: rung rdma can't be measured\n  why: ")
    assert "rdma: " in done.stderr
    assert done.stderr.endswith("  do: galaxy doctor rdma, on both machines\n")
    assert done.stdout == ""


def test_the_rung_of_gpus_is_measured_elsewhere() -> None:
    done = run("--rung", "ipc", *SMALL)
    assert done.exit_code == 1
    assert (
        "  do: it carries blocks of GPUs, and these lie in the host: python -m bench.kv_gpu_rungs"
        in done.stderr
    )


def test_a_block_that_no_write_holds_is_an_error_with_the_reason() -> None:
    done = run("--rung", "tcp", "--bytes", "16Mi", "--block", "16Mi", "--seconds", "0.2")
    assert done.exit_code == 1
    assert "at once, a block has 16777216" in done.stderr
    assert done.stderr.endswith("  do: a smaller --block\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--rung RUNG is needed"),
        (("--rung", "tcp", "--bytes", "64Ki", "--block", "1Mi"), "a block of 1048576 bytes"),
        (("--rung", "tcp", "--bytes", "many"), "many is no size"),
        (("--rung", "tcp", "--bytes", "0"), "0 is no size"),
        (("--serve", "--rung", "tcp"), "--serve is for one machine"),
        (("--rung", "tcp", "--bytes", "5Gi"), "a transfer of 5368709120 bytes: at most 4294967296"),
        (("--rung", "tcp", "--peer", "host:port"), "'host:port' is not HOST:PORT"),
        (("--rung", "tcp", "--peer", "host:65536"), "'host:65536' is not HOST:PORT"),
        (("--rung", "tcp", "--peer", ":80"), "':80' is not HOST:PORT"),
        (("--rung", "tcp", "--peer", ""), "'' is not HOST:PORT"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.key"
    path.write_bytes(b"k" * 32)
    return path


@pytest.fixture
def served(key: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "kserve_ext.cli", "kv", "bench", "--serve", "--host", "127.0.0.1"]
    command += ["--port", "0", "--key-file", str(key)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of who ignores it ignores it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[2].rstrip(";")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0


def test_against_another_machine_that_serves_any_rung(served: str, key: Path) -> None:
    for rung in ("tcp", "shm"):
        done = run("--rung", rung, "--peer", served, "--key-file", str(key), *SMALL)
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith(f"{rung} to {served}, 16 blocks")
    key.write_bytes(b"another" * 5)
    done = run("--rung", "tcp", "--peer", served, "--key-file", str(key), *SMALL)
    assert done.exit_code == 1
    assert "the same cluster key on both sides" in done.stderr


def test_nobody_serves_there(key: Path) -> None:
    done = run("--rung", "tcp", "--peer", "127.0.0.1:1", "--key-file", str(key), *SMALL)
    assert done.exit_code == 1
    assert "galaxy kv bench --serve on the other machine" in done.stderr
