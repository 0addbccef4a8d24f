"""Turns of a conversation: what either side holds travels, and only what is new is computed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine.conftest import PD
from tests.engine.instances import Nursery
from tests.engine.test_pair import BLOCK, _settled, prompt, transfer

pytestmark = pytest.mark.engine


def start(nursery: Nursery, rung: str, least: int = 1, fault: dict[str, str] | None = None) -> PD:
    """`least`: from how many tokens on prefill fetches. `fault`: of decode."""
    fetch = ("--kv-fetch-threshold-tokens", str(least))
    prefill = nursery.start("--role", "prefill", "--max-num-batched-tokens", "512", *fetch).ready()
    env = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{prefill.port}", **(fault or {})}
    options = ("--pd-threshold-tokens", "64", "--kv-transfer", rung)
    return PD(prefill, nursery.start("--role", "decode", *options, env=env).ready(), rung)


@pytest.fixture(scope="module", params=["auto", "tcp"])
def talking(request: pytest.FixtureRequest, nursery: Nursery) -> PD:
    return start(nursery, request.param)


class Counted:
    """Prompt tokens of an instance by their source, since it was made."""

    def __init__(self, pd: PD) -> None:
        self._instance = pd.prefill
        self._before = pd.prefill.sources()

    def __call__(self) -> tuple[int, int]:
        """Computed, and fetched."""
        now = self._instance.sources()

        def more(source: str) -> int:
            return int(now.get(source, 0) - self._before.get(source, 0))

        return more("local_compute"), more("external_kv_transfer")


def test_the_next_turn_computes_only_what_is_new(talking: PD) -> None:
    first = prompt(100, 400)
    said, _ = talking.decode.tokens(first, 200)
    counted = Counted(talking)
    second = first + said + prompt(101, 300)
    got, answer = talking.decode.tokens(second, 16)
    held = (len(first) + len(said) - 1) // BLOCK * BLOCK  # by decode
    assert counted() == (len(second) - held, held - len(first) // BLOCK * BLOCK)
    assert int(transfer(answer)[1]["tokens"]) == len(second) - held
    assert got == talking.prefill.tokens(second, 16)[0]


def test_what_only_decode_has_seen_is_fetched_whole(talking: PD) -> None:
    first = prompt(200, 60)  # too short for prefill
    said, _ = talking.decode.tokens(first, 400)
    counted = Counted(talking)
    second = first + said + prompt(201, 200)
    got, answer = talking.decode.tokens(second, 16)
    held = (len(first) + len(said) - 1) // BLOCK * BLOCK
    assert counted() == (len(second) - held, held)
    name = answer.headers["x-request-id"]
    marks = {mark: what for mark, _, what in talking.prefill.get(f"/galaxy/requests/{name}").json["marks"]}
    assert f"{held // BLOCK} blocks" in marks["fetched"]
    _settled(talking)
    assert got == talking.prefill.tokens(second, 16)[0]


def test_conversations_side_by_side(talking: PD) -> None:
    def talk(number: int) -> None:
        words = prompt(300 + number, 100 + 37 * number)
        for turn in range(3):
            said, _ = talking.decode.tokens(words, 90)
            words = words + said + prompt(1000 + 10 * number + turn, 150)
        got, _ = talking.decode.tokens(words, 8)
        assert got == talking.prefill.tokens(words, 8)[0]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(talk, range(6)))
    _settled(talking)


def test_few_tokens_are_computed_rather_than_fetched(nursery: Nursery) -> None:
    pd = start(nursery, "tcp", least=1000)
    first = prompt(400, 60)
    said, _ = pd.decode.tokens(first, 400)
    counted = Counted(pd)
    second = first + said + prompt(401, 200)
    got, _ = pd.decode.tokens(second, 8)
    assert counted() == (len(second), 0)
    assert got == pd.prefill.tokens(second, 8)[0]
    for instance in (pd.prefill, pd.decode):
        instance.kill()


def test_a_fetch_that_comes_broken_is_computed(nursery: Nursery, tmp_path: Path) -> None:
    file = tmp_path / "armed"
    pd = start(nursery, "tcp", fault={"FAULT": "flip", "FAULT_FILE": str(file)})
    first = prompt(500, 60)
    said, _ = pd.decode.tokens(first, 400)
    file.touch()
    counted = Counted(pd)
    second = first + said + prompt(501, 200)
    got, answer = pd.decode.tokens(second, 8)
    assert not file.exists()
    assert counted() == (len(second), 0)
    assert int(transfer(answer)[1]["tokens"]) > 0  # what prefill computed came all the same
    name = answer.headers["x-request-id"]
    marks = {mark: what for mark, _, what in pd.prefill.get(f"/galaxy/requests/{name}").json["marks"]}
    assert marks["not_fetched"] == "checksum"
    reference = nursery.start().ready()
    assert got == reference.tokens(second, 8)[0]
    _settled(pd)
    for instance in (reference, pd.prefill, pd.decode):
        instance.kill()
