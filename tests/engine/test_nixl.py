"""Our own prefill and decode over the rung nixl: the tokens of one engine, and KV that NIXL has carried.

Needs the package nixl: in the environment, or where the benches keep it (python -m bench.kv_peers fetches it).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import PD, start_pair
from tests.engine.instances import ROOT, Nursery, until
from tests.engine.test_pair import BLOCK, prompt, transfer
from tests.engine.test_two_leg import nixl_path

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def pd(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[PD]:
    given = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), nixl_path()))),
        "UCX_TLS": "tcp",
        "UCX_NET_DEVICES": "lo",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        nursery = Nursery(tmp_path_factory.mktemp("instances"), tiny_model)
    try:
        yield start_pair(nursery, "--kv-transfer", "nixl")._replace(rung="nixl")
    finally:
        nursery.close()


def test_tokens_equal_one_engines_and_came_by_nixl(pd: PD) -> None:
    asked = iter(range(10_000, 20_000))

    def stands() -> bool:
        _, answer = pd.decode.tokens(prompt(next(asked), 200), 2)
        return transfer(answer)[0] == "nixl"

    until(stands, "NIXL has met the other side")
    for length in (64, 128, 129, 700, 1900):
        got, answer = pd.decode.tokens(prompt(length, length), 16)
        assert got == pd.prefill.tokens(prompt(length, length), 16)[0]
        rung, facts = transfer(answer)
        assert (rung, facts["tokens"]) == ("nixl", str(length))
        assert (
            int(facts["bytes"]) == -(-length // BLOCK) * 4 * BLOCK * 2 * 2 * 64 * 4
        )  # layers, tokens, heads, K+V
