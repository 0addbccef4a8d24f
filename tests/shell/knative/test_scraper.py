"""Scraping over real sockets: samples, replacements of pods that fail, a mesh in between, answers that are none."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from autoscaler_shim.knative.stats.scraper import Scraper
from kserve_ext.api.knative.children import Trouble
from kserve_ext.api.knative.config import Network
from kserve_ext.core.knative.sampling import Load, MeshMode, Pod, Route
from kserve_ext.wire.stats import MAX_STAT_BYTES, Stat
from tests.support.knative_autoscaler import QueueProxies, run

#: "the private service": an address that answers for several pods
SERVICE = "127.0.0.100"
OLD, YOUNG = 0.0, 4e9


def addresses(count: int) -> list[str]:
    return [f"127.0.0.{i + 2}" for i in range(count)]


@contextlib.asynccontextmanager
async def scraping() -> AsyncIterator[tuple[Scraper, QueueProxies]]:
    async with QueueProxies() as proxies:
        scraper = Scraper(proxies.port)
        try:
            yield scraper, proxies
        finally:
            await scraper.close()


async def scrape(
    scraper: Scraper, pods: list[str], route: Route | None = None, network: Network | None = None
) -> Load | Trouble:
    return await scraper.scrape(
        SERVICE,
        [Pod(address, OLD) for address in pods],
        60,
        route or Route(MeshMode.AUTO),
        network or Network(),
    )


def stat(concurrency: float, proxied: float = 0.0, pod: str = "p", uptime: float = 1000) -> Stat:
    return Stat(pod, concurrency, proxied, 10 * concurrency, 10 * proxied, uptime)


def test_a_few_pods_are_all_asked_and_what_was_proxied_is_left_out() -> None:
    async def test() -> None:
        async with scraping() as (scraper, proxies):
            proxies.answers = dict(zip(addresses(3), (stat(1), stat(2, 1), stat(3)), strict=True))
            assert await scrape(scraper, addresses(3)) == Load(5, 50)
            assert sorted(proxies.asked) == addresses(3)

    run(test())


def test_of_many_pods_a_sample_stands_for_all() -> None:
    async def test() -> None:
        async with scraping() as (scraper, proxies):
            proxies.answers = dict.fromkeys(addresses(20), stat(2))
            assert await scrape(scraper, addresses(20)) == Load(40, 400)
            assert len(set(proxies.asked)) == len(proxies.asked) == 9

    run(test())


def test_for_a_pod_that_fails_another_is_asked() -> None:
    async def test() -> None:
        async with scraping() as (scraper, proxies):
            proxies.answers = dict.fromkeys(addresses(10), stat(2))
            proxies.answers |= dict.fromkeys(addresses(3), 500)
            assert await scrape(scraper, addresses(10)) == Load(20, 200)

    run(test())


@pytest.mark.parametrize(
    "answer", [500, b"\xff", b"x" * (MAX_STAT_BYTES + 1)], ids=["500", "malformed", "long"]
)
def test_too_few_answers_are_no_data(answer: int | bytes) -> None:
    async def test() -> None:
        async with scraping() as (scraper, proxies):
            proxies.answers = {addresses(2)[0]: stat(1), addresses(2)[1]: answer, SERVICE: stat(9)}
            found = await scrape(scraper, addresses(2))
            assert isinstance(found, Trouble)
            assert found.reason == "CollectionFailed"
            assert SERVICE not in proxies.asked

    run(test())


def test_behind_a_mesh_the_service_is_asked_and_later_the_pods_again() -> None:
    async def test() -> None:
        async with scraping() as (scraper, proxies):
            route = Route(MeshMode.AUTO)
            proxies.answers = {**dict.fromkeys(addresses(1), 503), SERVICE: stat(7)}
            assert await scrape(scraper, addresses(1), route) == Load(7, 70)
            proxies.asked.clear()
            assert await scrape(scraper, addresses(1), route) == Load(7, 70)
            assert proxies.asked == [SERVICE]
            route.pods_answered()
            proxies.answers[addresses(1)[0]] = stat(1)
            assert await scrape(scraper, addresses(1), route) == Load(1, 10)

    run(test())


def test_one_dead_pod_does_not_mean_a_mesh() -> None:
    async def test() -> None:
        async with scraping() as (scraper, proxies):
            proxies.answers = {addresses(2)[0]: 503, addresses(2)[1]: 500, SERVICE: stat(7)}
            assert isinstance(await scrape(scraper, addresses(2)), Trouble)
            assert SERVICE not in proxies.asked

    run(test())


def test_the_service_has_to_show_different_pods() -> None:
    async def test() -> None:
        async with scraping() as (scraper, proxies):
            route = Route(MeshMode.ENABLED)
            proxies.answers = {SERVICE: stat(7)}
            found = await scrape(scraper, addresses(2), route, Network(MeshMode.ENABLED))
            assert isinstance(found, Trouble)
            assert found.reason == "DidNotReceiveStat"
            proxies.answers = {SERVICE: 500}
            found = await scrape(scraper, addresses(2), route, Network(MeshMode.ENABLED))
            assert isinstance(found, Trouble)
            assert found.reason == "CollectionFailed"
            proxies.answers = {SERVICE: stat(7, uptime=1)}
            assert await scrape(scraper, addresses(1), route, Network(MeshMode.ENABLED)) == Load(7, 70)

    run(test())


def test_with_addressable_pods_in_a_mesh_nothing_else_is_tried() -> None:
    async def test() -> None:
        async with scraping() as (scraper, proxies):
            proxies.answers = {**dict.fromkeys(addresses(1), 503), SERVICE: stat(7)}
            found = await scrape(scraper, addresses(1), None, Network(passthrough=True))
            assert isinstance(found, Trouble)
            assert proxies.asked == addresses(1)

    run(test())
