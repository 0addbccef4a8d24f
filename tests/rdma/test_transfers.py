"""Prefill's and decode's halves against each other over verbs: the tests of tests/runtimes on another rung."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runtimes import test_transfers
from tests.runtimes.test_transfers import Setup
from tests.support.channel_ends import until

globals().update(
    {
        name: test
        for name, test in vars(test_transfers).items()
        if name.startswith("test_") and "setup" in getattr(test, "__annotations__", {})
    }
)


@pytest.fixture(params=["rdma", "rdma-staged"])
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    """Over a device to itself: who is asked for none takes the first one."""
    made = Setup(request.param)
    until(lambda: made.channel.rungs == made.far.rungs == (request.param,))
    yield made
    made.close()


def test_the_same_tests_are_here() -> None:
    assert sum(name.startswith("test_") for name in globals()) > 10
