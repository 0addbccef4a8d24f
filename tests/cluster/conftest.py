"""One embedded cluster for the tests of a module: two of each function, two nodes, the echo runtime."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.embedded import Embedded, echo_runtime

TWO_OF_EACH = ("--dispatch", "2", "--schedule", "2", "--cluster-mgr", "2", "--nodes", "2")
SIZE = ("--node-cpu", "4", "--node-memory", "4Gi")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("galaxy")
    model = folder / "claim" / "anything"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    with Embedded(folder / "data", *TWO_OF_EACH, *SIZE, "--pvc", f"models={folder / 'claim'}") as up:
        up.apply(echo_runtime())
        yield up


@pytest.fixture(scope="module")
def model() -> str:
    return "pvc://models/anything"
