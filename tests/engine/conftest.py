"""One zygote for the whole session; instances that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engine.instances import Instance, Nursery


class PD(NamedTuple):
    """A prefill and a decode instance; prefill answers as one engine, too."""

    prefill: Instance
    decode: Instance
    rung: str = ""


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("instances"), tiny_model)
    yield made
    made.close()


@pytest.fixture(scope="session")
def unified(nursery: Nursery) -> Instance:
    return nursery.start().ready()


def start_pair(nursery: Nursery, *options: str, fault: dict[str, str] | None = None) -> PD:
    prefill = nursery.start("--role", "prefill", "--max-num-batched-tokens", "512", env=fault)
    prefill.ready()
    peers = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{prefill.port}"}
    decode = nursery.start("--role", "decode", "--pd-threshold-tokens", "64", *options, env=peers)
    return PD(prefill, decode.ready())


@pytest.fixture(scope="session", params=["shm", "tcp"])
def pd(request: pytest.FixtureRequest, nursery: Nursery) -> PD:
    return start_pair(nursery, "--kv-transfer", request.param)._replace(rung=request.param)
