"""The instance's own options: values that can't be are refused by name, and the rungs that kv-transfer allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.vllm_pd.status import StartRefused

pytestmark = pytest.mark.engine

MODEL = ("--model", "/m")


@pytest.mark.parametrize(
    ("words", "environ", "line"),
    [
        ("--kv-most-channels 0", {}, "--kv-most-channels: 0 is out of bounds; give a number from 1 on"),
        ("--kv-pairs -1", {}, "--kv-pairs: -1 is out of bounds; give a number from 0 on"),
        ("--kv-lease-seconds nan", {}, "--kv-lease-seconds: nan is out of bounds; give a number from 1 on"),
        ("--kv-fetch-threshold-tokens -5", {}, "--kv-fetch-threshold-tokens: -5 is out of bounds; give a"),
        ("", {"GALAXY_KV_TRANSFER_SECONDS": "0"}, "GALAXY_KV_TRANSFER_SECONDS: 0.0 is out of bounds; give"),
        ("", {"GALAXY_KV_PAIRS": "few"}, "GALAXY_KV_PAIRS: 'few' is not a number; correct or remove it"),
        ("", {"GALAXY_KV_SENDS_BY": "rows"}, "GALAXY_KV_SENDS_BY: 'rows' is no way to send KV; use layers"),
    ],
)
def test_a_value_that_can_not_be(words: str, environ: dict[str, str], line: str) -> None:
    from runtimes.vllm_pd.options import parse

    with pytest.raises(StartRefused) as refused:
        parse([*MODEL, *words.split()], environ)
    assert refused.value.line.startswith(line)


def test_a_cpu_can_not_sleep_and_the_argument_is_named(tiny_model: Path) -> None:
    from runtimes.vllm_pd.server import arguments

    with pytest.raises(StartRefused) as refused:
        arguments(["--model", str(tiny_model), "--enable-sleep-mode"])
    assert refused.value.line.startswith("--enable-sleep-mode: vLLM's CPU backend can't sleep")
    assert refused.value.permanent


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("rdma", {"rdma", "rdma-staged"}),
        ("ipc", {"ipc", "shm"}),
        ("shm", {"shm"}),
        ("nixl", {"nixl"}),
        ("tcp", {"tcp"}),
        ("auto", {"rdma", "rdma-staged", "ipc", "shm", "nixl", "tcp"}),
    ],
)
def test_the_rungs_that_kv_transfer_allows(setting: str, allowed: set[str]) -> None:
    from runtimes.vllm_pd.options import parse
    from runtimes.vllm_pd.pair import rungs

    assert set(rungs(parse([*MODEL], {"GALAXY_KV_TRANSFER": setting}))) == allowed
