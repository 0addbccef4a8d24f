"""Decode's front and prefill peers that fail, with leases from a list and without an engine."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_ext.core.kv_links import Peer, Refusal
from runtimes.vllm_pd.home_client import NO_WORK, NOTHING, Computed, Lease, NoPrefill, Wanted
from runtimes.vllm_pd.landing import Outcome
from runtimes.vllm_pd.load import Load
from runtimes.vllm_pd.timeline import CURRENT, Timeline

pytestmark = pytest.mark.engine

REFUSED = Refusal("incompatible", "dtype")
ARGS = Namespace(pd="auto", pd_threshold_tokens=64, kv_transfer="auto", kv_transfer_required=False)


class Given:
    """Leases of these instances, one after the other; then none."""

    def __init__(self, *instances: str) -> None:
        self.instances = list(instances)
        self.waits: list[float | None] = []
        self.released: list[tuple[str, str]] = []

    async def lease(
        self, request_id: str, tokens: int, wait_s: float | None = None, wanted: Wanted = NOTHING
    ) -> Lease:
        self.waits.append(wait_s)
        self.wanted = wanted
        if not self.instances:
            raise NoPrefill("none was free in time")
        return Lease(str(len(self.waits)), self.instances.pop(0), "127.0.0.1:9")

    async def release(self, lease: Lease, failed: str = "", work: Computed = NO_WORK) -> None:
        self.released.append((lease.instance, failed))

    async def peers(self, tag: str) -> tuple[str, tuple[Peer, ...]]:
        raise AssertionError("only channels ask")

    async def report(self, load: Load) -> None:
        raise AssertionError("an engine at rest says nothing")

    async def close(self) -> None:
        return


def after_a_failure(reason: str, given: Given, check: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    """A transfer from p has ended like this; then."""
    from runtimes.vllm_pd.front import Front

    async def run() -> None:
        nothing: Any = None
        channels: Any = SimpleNamespace(
            count=lambda peer, rank, size: None, usable=lambda: ({"p", "q"}, {"r": REFUSED}), peers=3
        )
        engine: Any = SimpleNamespace(client=SimpleNamespace(at_rest=True, generated=0))
        front = Front(ARGS, engine, given, channels, nothing)
        outcome = Outcome(reason, "shm", 0, 0, 0, 0.0)
        front._closed(Lease("0", "p", "127.0.0.1:9"), Timeline("r"), outcome, [])
        await check(front)
        await asyncio.gather(*front._releases)

    asyncio.run(run())


@pytest.mark.parametrize("reason", ["timeout", "channel-timeout", "channel-closed"])
def test_a_peer_that_failed_is_reported_and_passed_over(reason: str) -> None:
    given = Given("p", "q")

    async def check(front: Any) -> None:
        assert (await front._lease(Timeline("r"), 300, NOTHING)).instance == "q"

    after_a_failure(reason, given, check)
    assert given.released == [("p", reason), ("p", "backing-off")]


@pytest.mark.parametrize("instances", [("p", "p", "p", "p"), ("p",), ()])
def test_without_another_peer_nothing_is_waited_for(instances: tuple[str, ...]) -> None:
    given = Given(*instances)

    async def check(front: Any) -> None:
        with pytest.raises(NoPrefill) as caught:
            await front._lease(Timeline("r"), 300, NOTHING)
        assert caught.value.reason == "backing-off"

    after_a_failure("timeout", given, check)
    assert all(wait is not None and wait < 1.0 for wait in given.waits)
    assert len(given.waits) <= 3


@pytest.mark.parametrize("reason", ["", "not needed", "request ended", "preempted"])
def test_what_is_not_the_peers_fault_is_no_failure(reason: str) -> None:
    given = Given("p")

    async def check(front: Any) -> None:
        assert (await front._lease(Timeline("r"), 300, NOTHING)).instance == "p"

    after_a_failure(reason, given, check)
    assert given.released == [("p", "")]
    assert given.waits == [None]


def test_a_peer_that_rests_is_named_to_home_and_without_any_other_prefill_is_not_asked() -> None:
    given = Given()

    async def check(front: Any) -> None:
        assert front._peers() == (("q",), ("p", "r"))
        assert front._channel() == "standing"
        front._channels.usable = lambda: (set(), {"q": REFUSED, "r": REFUSED})
        assert front._channel() == "resting"
        CURRENT.set(timeline := Timeline("r"))
        assert (await front.prepare("r", prompt(200), None, {})).waiting
        assert timeline.transfer == "none;reason=incompatible"
        assert [mark[::2] for mark in timeline.marks][1:] == [("recompute", "incompatible: dtype")]
        assert front._backlog.tokens == 200
        front._required = True
        assert front._channel() == "standing", "it is tried, and refused with the reason"
        with pytest.raises(Exception, match=r"kv-transfer-required: .* \(kv-transfer is auto\): no channel$"):
            front._refuse_if_required("no channel")

    after_a_failure("timeout", given, check)
    assert not given.waits


def test_a_prompt_stays_here_while_more_waits_at_prefill_instances_and_home_hears_of_it() -> None:
    given = Given()

    async def check(front: Any) -> None:
        front._engine.client.call = no_tokens
        front._there = (5000, front._loop.time())
        prepared = await front.prepare("r", prompt(200), None, {})
        assert (prepared.transfer, front._load._unsent) == (0, 200)
        assert not given.waits
        front.finished(prepared, None, 0)
        assert front._backlog.tokens == 0

    after_a_failure("", given, check)


def prompt(tokens: int) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": [7] * tokens}


async def no_tokens(job: Any) -> int:
    return 0


def test_where_all_peers_refuse_home_is_not_asked_and_what_they_say_is_told() -> None:
    given = Given("p")

    async def check(front: Any) -> None:
        front._channels = SimpleNamespace(usable=lambda: (set(), {"p": REFUSED}), peers=1)
        with pytest.raises(NoPrefill, match="incompatible: dtype") as caught:
            await front._arrange([1] * 300, 0, Timeline("r"))
        assert caught.value.reason == "incompatible"

    after_a_failure("", given, check)
    assert given.waits == []
