"""Tests over real verbs. `make rdma` runs them under a kernel with soft-RoCE; elsewhere they are skipped.

After each of them the kernel is asked what is left of queue pairs, regions, completion queues and domains: it must be
what was there before.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rdma.machine import Nics, inside, resources

HERE = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rdma: needs RDMA devices (make rdma brings a kernel that has them)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = _missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.rdma)
            if why:
                item.add_marker(pytest.mark.skip(reason=f"{why}: make rdma"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(120))


def _missing() -> str:
    if not inside():
        return "needs the machine with soft-RoCE"
    return "" if importlib.util.find_spec("pyverbs") else "needs pyverbs"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = resources()
    yield
    deadline = time.monotonic() + 30.0  # the last reader of a channel closes it, after its owner was told
    while (left := resources()) != before and time.monotonic() < deadline:
        pass
    assert left == before


@pytest.fixture
def nics() -> Iterator[Nics]:
    """The two devices at the ends of a wire, which is whole again afterwards."""
    yield Nics()
    Nics.lose_none()
    Nics.link_up()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A cluster's, in a file."""
    path = tmp_path / "cluster.key"
    path.write_bytes(b"k" * 32)
    return path
