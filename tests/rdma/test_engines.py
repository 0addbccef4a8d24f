"""Two real vLLM engines, KV from cache to cache over a wire: the tokens are those of one engine."""

from __future__ import annotations

import importlib.util
import itertools
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine import storm
from tests.engine.conftest import PD
from tests.engine.instances import Nursery, until
from tests.rdma.machine import Nics

BLOCK = 128
pytestmark = [
    pytest.mark.timeout(540),
    pytest.mark.filterwarnings("default"),  # of vLLM and torch: not ours to settle
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: run `make setup`"
    ),
]


class OnVerbs(Nursery):
    def _zygote(self, path: Path, runtime: str) -> subprocess.Popen[bytes]:
        return super()._zygote(path, "tests.rdma.runtime")


@pytest.fixture(scope="module")
def pd(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[PD]:
    nursery = OnVerbs(tmp_path_factory.mktemp("instances"), tiny_model)
    try:
        words = ("--kv-transfer", "rdma")
        prefill = nursery.start(
            "--role",
            "prefill",
            "--max-num-batched-tokens",
            "512",
            *words,
            env={"GALAXY_RDMA_DEVICES": Nics.far, "RUNG": "rdma"},
        ).ready()
        env = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{prefill.port}", "GALAXY_RDMA_DEVICES": Nics.near}
        env["RUNG"] = "rdma"
        decode = nursery.start("--role", "decode", "--pd-threshold-tokens", "64", *words, env=env)
        yield PD(prefill, decode.ready(), "rdma")
    finally:
        nursery.close()


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 260) for _ in range(length)]


@pytest.mark.parametrize("length", [64, 129, 700, 1900])
def test_tokens_equal_one_engines_and_the_device_carried_the_kv(pd: PD, length: int) -> None:
    tokens = prompt(length, length)
    carried = Nics.bytes_sent(Nics.far)
    got, answer = pd.decode.tokens(tokens, 16)
    said = answer.headers["x-kv-transfer"]
    assert said.startswith("rdma;bytes="), said
    assert f";tokens={length};" in said
    facts = dict(part.split("=") for part in said.split(";")[1:])
    assert Nics.bytes_sent(Nics.far) - carried >= int(facts["bytes"]) > 0
    expected, _ = pd.prefill.tokens(tokens, 16)
    assert got == expected


def test_a_network_that_fails_costs_time_and_no_token(pd: PD, nics: Nics) -> None:
    tokens = prompt(7, 300)
    expected, _ = pd.prefill.tokens(tokens, 16)
    nics.lose_packets(100)
    got, answer = pd.decode.tokens(tokens, 16)
    assert answer.headers["x-kv-transfer"].startswith("none;reason=channel-unreachable;tried=rdma")
    assert got == expected
    nics.lose_none()
    fresh = (
        prompt(seed, 300) for seed in itertools.count(100)
    )  # nothing of it is cached, and the peer rests a while
    until(
        lambda: pd.decode.tokens(next(fresh), 1)[1].headers["x-kv-transfer"].startswith("rdma;"), "rdma again"
    )


def test_a_storm_over_verbs_costs_no_token_and_no_block(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, nics: Nics
) -> None:
    nursery = OnVerbs(tmp_path_factory.mktemp("storm"), tiny_model)
    far, near = ({"GALAXY_RDMA_DEVICES": device, "RUNG": "rdma"} for device in (Nics.far, Nics.near))
    try:
        outcome = storm.run(nursery, 60, "rdma", seed=3, env=(far, near))
    finally:
        nursery.close()
    assert outcome.wrong == []
    assert outcome.unequal == []
    assert outcome.rungs["rdma"] > 20, outcome.rungs
