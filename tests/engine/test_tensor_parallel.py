"""Ranks in processes of their own: the same tokens, and an instance that ends with any of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.instances import Instance, Nursery, until
from tests.engine.test_pair import prompt

pytestmark = pytest.mark.engine


@pytest.fixture
def two_ranks(nursery: Nursery) -> Iterator[Instance]:
    made = nursery.start("--tensor-parallel-size", "2").ready()
    yield made
    if made.exit_facts() is None:
        made.kill()
        made.exited()


def workers(instance: Instance) -> list[int]:
    """Processes that the instance has started for its ranks."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == instance.pid and b"resource_tracker" not in command:
            found.append(int(folder.name))
    return found


def test_ranks_give_the_tokens_of_one_and_end_with_their_instance(
    two_ranks: Instance, unified: Instance
) -> None:
    for length in (5, 300, 1500):
        assert two_ranks.tokens(prompt(length, length))[0] == unified.tokens(prompt(length, length))[0]
    ranks = workers(two_ranks)
    assert len(ranks) == 2
    two_ranks.kill()
    assert two_ranks.exited()["code"] == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), "the ranks' ends")


def test_an_instance_whose_rank_dies_ends(two_ranks: Instance) -> None:
    os.kill(workers(two_ranks)[1], signal.SIGKILL)
    assert two_ranks.exited()["code"] == 1
    assert "a worker process has ended" in two_ranks.log
