"""Decode's front and prefill peers that fail, with leases from a list and without an engine."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes.vllm_pd.home_client import Lease, NoPrefill
from runtimes.vllm_pd.landing import Outcome
from runtimes.vllm_pd.timeline import Timeline

pytestmark = pytest.mark.engine

ARGS = Namespace(pd="auto", pd_threshold_tokens=64, kv_transfer="auto", kv_transfer_required=False)


class Given:
    """Leases of these instances, one after the other; then none."""

    def __init__(self, *instances: str) -> None:
        self.instances = list(instances)
        self.waits: list[float | None] = []
        self.released: list[tuple[str, str]] = []

    async def lease(self, request_id: str, tokens: int, wait_s: float | None = None) -> Lease:
        self.waits.append(wait_s)
        if not self.instances:
            raise NoPrefill("none was free in time")
        return Lease(str(len(self.waits)), self.instances.pop(0), "127.0.0.1:9")

    async def release(self, lease: Lease, failed: str = "") -> None:
        self.released.append((lease.instance, failed))

    async def close(self) -> None:
        return


def after_a_failure(reason: str, given: Given, check: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    """A transfer from p has ended like this; then."""
    from runtimes.vllm_pd.front import Front

    async def run() -> None:
        nothing: Any = None
        channels: Any = SimpleNamespace(count=lambda peer, rank, size: None)
        front = Front(ARGS, nothing, given, channels, nothing)
        outcome = Outcome(reason, "shm", 0, 0, 0, 0.0)
        front._closed(Lease("0", "p", "127.0.0.1:9"), Timeline("r"), outcome)
        await check(front)
        await asyncio.gather(*front._releases)

    asyncio.run(run())


@pytest.mark.parametrize("reason", ["timeout", "channel-timeout", "channel-closed"])
def test_a_peer_that_failed_is_reported_and_passed_over(reason: str) -> None:
    given = Given("p", "q")

    async def check(front: Any) -> None:
        assert (await front._lease(Timeline("r"), 300)).instance == "q"

    after_a_failure(reason, given, check)
    assert given.released == [("p", reason), ("p", "backing-off")]


@pytest.mark.parametrize("instances", [("p", "p", "p", "p"), ("p",), ()])
def test_without_another_peer_nothing_is_waited_for(instances: tuple[str, ...]) -> None:
    given = Given(*instances)

    async def check(front: Any) -> None:
        with pytest.raises(NoPrefill) as caught:
            await front._lease(Timeline("r"), 300)
        assert caught.value.reason == "backing-off"

    after_a_failure("timeout", given, check)
    assert all(wait is not None and wait < 1.0 for wait in given.waits)
    assert len(given.waits) <= 3


@pytest.mark.parametrize("reason", ["", "not needed", "request ended", "preempted"])
def test_what_is_not_the_peers_fault_is_no_failure(reason: str) -> None:
    given = Given("p")

    async def check(front: Any) -> None:
        assert (await front._lease(Timeline("r"), 300)).instance == "p"

    after_a_failure(reason, given, check)
    assert given.released == [("p", "")]
    assert given.waits == [None]
