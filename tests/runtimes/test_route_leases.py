"""Leases that are requests: decode's side asks, prefill's side holds its answer open, over a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from runtimes.vllm_pd.entrance import Entrance
from runtimes.vllm_pd.given import GivenLeases
from runtimes.vllm_pd.home_client import NOTHING, Lease, NoPrefill, Wanted, make_leases
from runtimes.vllm_pd.http_server import http_server, listen
from runtimes.vllm_pd.route_leases import RouteLeases
from runtimes.vllm_pd.status import Phase, Status
from runtimes.vllm_pd.timeline import Timelines
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until
from tests.support.knative_activator import Pod, running

LONG_S = 30.0


class Prefill:
    """An instance, reached without an activator between."""

    def __init__(self) -> None:
        self.status = Status(None)
        self.entrance = Entrance(self.status, Timelines())
        self.addr = ""
        self.given = self.entrance.leases = GivenLeases(
            lambda: {"instance": "pod-1", "addr": self.addr, "generation": 7}
        )


@contextlib.asynccontextmanager
async def prefill(phase: Phase = "ready") -> AsyncIterator[Prefill]:
    made = Prefill()
    made.status.enter(phase)
    listener = listen("127.0.0.1", 0)
    made.addr = f"127.0.0.1:{listener.getsockname()[1]}"
    server = http_server(made.entrance, 1.0, "critical")
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield made
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def leases(addr: str, wait_s: float = LONG_S) -> AsyncIterator[RouteLeases]:
    made = RouteLeases("ns/chat", f"http://{addr}", wait_s)
    try:
        yield made
    finally:
        await made.close()


async def none_is_open(made: Prefill) -> None:
    await until(lambda: not made.given.open, "no lease is open")


async def refused(addr: str, wait_s: float = LONG_S, wanted: Wanted = NOTHING) -> NoPrefill:
    async with leases(addr, wait_s) as asking:
        with pytest.raises(NoPrefill) as refusal:
            await asking.lease("r", 1, wanted=wanted)
    return refusal.value


def test_a_lease_lasts_until_it_is_given_back() -> None:
    async def test() -> None:
        async with prefill() as made, leases(made.addr) as asking:
            first = await asking.lease("r-1", 100)
            second = await asking.lease("r-2", 100)
            assert first == Lease(first.id, "pod-1", made.addr, 7, "the activator's choice")
            assert made.given.open == 2
            await asking.release(first)
            await asking.release(first)  # again changes nothing
            assert made.given.open == 1
            await asking.release(second)
            await none_is_open(made)

    run(test())


def test_a_lease_ends_with_the_connection() -> None:
    async def test() -> None:
        async with prefill() as made:
            async with leases(made.addr) as asking:
                await asking.lease("r-1", 100)
                assert made.given.open == 1
            await none_is_open(made)

    run(test())


def test_why_there_is_none() -> None:
    async def test() -> None:
        async with prefill("loading") as made:
            assert "not ready: loading" in str(await refused(made.addr))
        assert f"http://{made.addr}/galaxy/lease: " in str(await refused(made.addr)), "nobody listens"
        async with prefill() as made:
            made.entrance.leases = None
            assert str(await refused(made.addr)).startswith("404: ")
        async with running(Pod()) as pod:  # an activator that holds it
            pod.gate.clear()
            assert str(await refused(pod.addr, 0.05)) == "no prefill instance within 0.05 s"
            pod.gate.set()

    run(test())


def test_an_instance_that_is_of_no_use_is_given_back() -> None:
    async def test() -> None:
        async with prefill() as made:
            refusal = await refused(made.addr, wanted=Wanted(excluded=("pod-1",)))
            assert refusal.reason == "backing-off"
            await none_is_open(made)

    run(test())


def test_the_first_question_for_peers_wakes_one_and_is_never_answered() -> None:
    async def test() -> None:
        async with prefill() as made, leases(made.addr) as asking:
            waiting = asyncio.create_task(asking.peers(""))
            await until(lambda: asking.woken, "one was asked")
            await none_is_open(made)
            assert not waiting.done()
            waiting.cancel()

    run(test())


def test_one_request_stays_while_a_start_takes_longer_than_clients_wait() -> None:
    async def test() -> None:
        async with running(Pod()) as pod, leases(pod.addr, 0.05) as asking:
            pod.gate.clear()
            for number in range(3):
                with pytest.raises(NoPrefill):
                    await asking.lease(f"r-{number}", 100)
            await until(lambda: len(pod.heads) == 4, "three of clients, and one that stays")
            assert sum(b"galaxy-wakes-prefill" in head for head in pod.heads) == 1
            pod.gate.set()

    run(test())


def test_which_leases_an_environment_means() -> None:
    activator = {"GALAXY_ACTIVATOR": "http://activator"}
    assert isinstance(make_leases({**activator, "GALAXY_GROUP": "ns/chat"}), RouteLeases)
    for group in ("", "ns/"):  # a service without the annotation
        assert not isinstance(make_leases({**activator, "GALAXY_GROUP": group}), RouteLeases)
