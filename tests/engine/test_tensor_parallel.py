"""Ranks in processes of their own: the same tokens, and an instance that ends with any of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine.conftest import PD
from tests.engine.instances import Instance, Nursery, until
from tests.engine.test_pair import BLOCK, _settled, prompt, transfer
from tests.support.processes import lives

pytestmark = pytest.mark.engine


@pytest.fixture
def two_ranks(nursery: Nursery) -> Iterator[Instance]:
    made = nursery.start("--tensor-parallel-size", "2").ready()
    yield made
    if made.exit_facts() is None:
        made.kill()
        made.exited()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def workers(instance: Instance) -> list[int]:
    """Processes of the instance's ranks: forked by one that the instance has forked for that."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(folder.name)] = parent_of(int(folder.name))
    return [pid for pid, parent in parents.items() if parents.get(parent) == instance.pid]


def test_ranks_give_the_tokens_of_one_and_end_with_their_instance(
    two_ranks: Instance, unified: Instance
) -> None:
    for length in (5, 300, 1500):
        assert two_ranks.tokens(prompt(length, length))[0] == unified.tokens(prompt(length, length))[0]
    ranks = workers(two_ranks)
    assert len(ranks) == 2
    two_ranks.kill()
    assert two_ranks.exited()["code"] == 0
    until(lambda: not any(lives(pid) for pid in ranks), "the ranks' ends")


@pytest.mark.parametrize("ready", [False, True], ids=["loading", "ready"])
def test_nothing_is_left_of_an_instance_that_is_killed(nursery: Nursery, ready: bool) -> None:
    instance = nursery.start("--tensor-parallel-size", "2")
    until(lambda: len(workers(instance)) == 2, "its ranks")
    if ready:
        instance.ready()
    ranks = workers(instance)
    (server,) = {parent_of(pid) for pid in ranks}
    instance.kill(signal.SIGKILL)
    instance.exited()
    left = (*ranks, server)
    until(lambda: not any(lives(pid) for pid in left), "the ends of ranks and server")


def test_an_instance_whose_rank_dies_ends(two_ranks: Instance) -> None:
    os.kill(workers(two_ranks)[1], signal.SIGKILL)
    assert two_ranks.exited()["code"] == 1
    assert "a worker process has ended" in two_ranks.log


class Ranks:
    """A pair of so many ranks each."""

    def __init__(self, nursery: Nursery, prefill: int, decode: int, *options: str) -> None:
        batch = ("--role", "prefill", "--max-num-batched-tokens", "512")
        self.prefill = nursery.start(*batch, "--tensor-parallel-size", str(prefill)).ready()
        env = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{self.prefill.port}"}
        role = ("--role", "decode", "--pd-threshold-tokens", "64", "--tensor-parallel-size", str(decode))
        self.pd = PD(self.prefill, nursery.start(*role, *options, env=env).ready())

    def close(self) -> None:
        for instance in (self.pd.prefill, self.pd.decode):
            instance.kill()
            instance.exited()


@pytest.mark.parametrize(("prefill", "decode"), [(2, 2), (2, 1), (1, 2)])
def test_ranks_send_each_other_the_blocks_of_their_heads(
    nursery: Nursery, unified: Instance, prefill: int, decode: int
) -> None:
    """A prompt that decode computes after all (several processes spin on two cores) has right tokens, too."""
    ranks = Ranks(nursery, prefill, decode)
    pd = ranks.pd
    seeds = itertools.count(1)

    def sent(length: int) -> bool:
        tokens = prompt(10_000 * next(seeds), length)
        before = pd.decode.sources().get("external_kv_transfer", 0)
        got, answer = pd.decode.tokens(tokens, 16)
        came = pd.decode.sources().get("external_kv_transfer", 0) - before
        assert got == unified.tokens(tokens, 16)[0]
        rung, facts = transfer(answer)
        if rung == "none":
            assert came == 0
            return False
        blocks = -(-length // BLOCK)
        size = blocks * 4 * BLOCK * 2 * 2 * 64 * 4  # all heads of all ranks
        assert (came, int(facts["tokens"]), int(facts["bytes"])) == (length, length, size)
        return True

    for length in (129, 700):
        until(lambda length=length: sent(length), f"a transfer of {length} tokens")
    with ThreadPoolExecutor(3) as pool:
        many = list(pool.map(lambda seed: pd.decode.tokens(prompt(seed, 300), 4)[0], range(5000, 5003)))
    assert many == [unified.tokens(prompt(seed, 300), 4)[0] for seed in range(5000, 5003)]
    next(pd.decode.stream({"prompt": prompt(6000, 1800), "max_tokens": 40, "ignore_eos": True}))
    _settled(pd)
    ranks.close()
