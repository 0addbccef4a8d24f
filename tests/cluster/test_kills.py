"""kill -9 of each part under load: invariant 2 to the letter, and the cluster whole again (how soon is printed)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from tests.cluster.test_at_zero import instances, shard_urls, until_held
from tests.support.embedded import Embedded, echo_service
from tests.support.load import Tally, session, steady, volley

pytestmark = pytest.mark.cluster

HOST = "steady.default.galaxy.local"
PARTS = [
    *("controller-0", "cluster-mgr-0", "cluster-mgr-1", "schedule-0", "schedule-1"),
    *("dispatch-0", "dispatch-1", "node-0", "node-1", "objects-0"),
]


@pytest.fixture(scope="module")
def service(cluster: Embedded, model: str) -> Embedded:
    spec = "    maxReplicas: 4\n    containerConcurrency: 4\n"
    cluster.apply(echo_service("steady", model, spec=spec))
    assert asyncio.run(volley(shard_urls(cluster), HOST, 8)).ok == 8
    return cluster


#: Answers of a shard that are many, before and after what is done in the middle of a load.
MANY = 50


def under_load(cluster: Embedded, act: Callable[[], None]) -> dict[str, Tally]:
    """Runs act() in the middle of a steady load over both shards; the tally of each shard's URL.

    Every shard has answered many requests before, and those that act() left alone as many after it.
    """
    urls = shard_urls(cluster)
    tallies = {url: Tally() for url in urls}
    done = threading.Event()

    def answered(more: dict[str, int]) -> bool:
        assert not load.done(), load.result()
        return all(tallies[url].ok >= number + MANY for url, number in more.items())

    with ThreadPoolExecutor(1) as driver:
        load = driver.submit(lambda: asyncio.run(steady(urls, HOST, 12, done.is_set, tallies)))
        try:
            cluster.wait("the load flows", lambda: answered(dict.fromkeys(urls, 0)))
            act()
            time.sleep(2.0)  # the load's own length, not a wait for anything
            left = {url: tallies[url].ok for url in urls if url in shard_urls(cluster)}
            cluster.wait("the load flows on", lambda: answered(left))
        finally:
            done.set()
        return load.result()


@pytest.mark.parametrize("part", PARTS)
def test_kill_of_a_part_under_load(service: Embedded, part: str) -> None:
    def act() -> None:
        restarted = service.back(part, service.kill(part))
        took = restarted + service.wait("the cluster is whole again", lambda: service.whole(PARTS))
        print(f"{part}: whole again after {took:.1f} s")

    urls = shard_urls(service)
    tallies = under_load(service, act)
    for url, tally in tallies.items():
        assert tally.sent == tally.accounted
        if part == f"dispatch-{urls.index(url)}":
            assert not tally.refused, f"{url}: {tally}"  # its own connections are reset, nothing else
        else:
            assert (tally.reset, dict(tally.refused)) == (0, {}), f"{part} killed, {url}: {tally}"
    assert len(instances(service, "steady")) <= 4


def test_kill_of_an_instance_under_load(service: Embedded) -> None:
    victim = asyncio.run(volley(shard_urls(service), HOST, 1)).pids.pop()
    tallies = under_load(service, lambda: os.kill(victim, signal.SIGKILL))
    lost = 0
    for tally in tallies.values():
        assert tally.reset == 0, str(tally)
        assert set(tally.refused) <= {502}, str(tally)
        lost += tally.refused[502]
    assert lost <= 4, "more requests failed than the dead instance had slots"
    after = asyncio.run(volley(shard_urls(service), HOST, 20))
    assert after.ok == 20, str(after)
    assert victim not in after.pids


def test_an_instance_that_dies_in_mid_stream_ends_it_with_an_error_and_no_done(service: Embedded) -> None:
    async def read() -> str:
        async with session() as client:
            url = f"{shard_urls(service)[0]}stream?n=20000&gap=0.05"
            async with client.get(url, headers={"Host": HOST}) as response:
                assert response.status == 200
                first = await response.content.readuntil(b"\n\n")
                os.kill(int(response.headers["x-pid"]), signal.SIGKILL)
                return (first + await response.read()).decode()

    text = asyncio.run(read())
    assert text.startswith("data: 0\n\n")
    assert '"error"' in text.rstrip().rpartition("data: ")[2]
    assert "[DONE]" not in text


def test_two_hundred_streams_through_one_dispatch_function(service: Embedded, model: str) -> None:
    """Every event of every stream, in order, to its end."""
    service.apply(echo_service("choir", model, spec="    maxReplicas: 2\n"))

    async def one(client: aiohttp.ClientSession) -> bytes:
        url = f"{shard_urls(service)[0]}stream?n=20&gap=0.02"
        async with client.get(url, headers={"Host": "choir.default.galaxy.local"}) as response:
            return await response.read()

    async def all_of_them() -> list[bytes]:
        async with session() as client:
            return await asyncio.gather(*(one(client) for _ in range(200)))

    whole_stream = b"".join(b"data: %d\n\n" % k for k in range(20)) + b"data: [DONE]\n\n"
    assert asyncio.run(all_of_them()) == [whole_stream] * 200
    service.galaxy("delete", "isvc", "choir")


@pytest.mark.parametrize("part", ["schedule-0", "cluster-mgr-0", "node-0", "controller-0"])
def test_a_request_at_zero_right_after_a_kill(service: Embedded, model: str, part: str) -> None:
    name = f"cold-{part}"
    service.apply(echo_service(name, model))
    service.kill(part)
    tally = asyncio.run(volley(shard_urls(service), f"{name}.default.galaxy.local", 10))
    assert tally.ok == 10, str(tally)
    service.galaxy("delete", "isvc", name)
    service.wait("whole again", lambda: service.whole(PARTS))


def test_the_home_dies_while_it_holds_the_demand_of_the_other_shard(
    service: Embedded, model: str, tmp_path: Path
) -> None:
    """Whichever shard is home: one of the two kills hits it. What the survivor holds is answered."""
    for shard in (0, 1):
        name = f"orphan-{shard}"
        slow = echo_service(name, model, spec="    maxReplicas: 2\n    containerConcurrency: 2\n")
        may_start = tmp_path / name
        service.apply(f"{slow.rstrip()}\n      args: ['--until={may_start}']\n")
        survivor = shard_urls(service)[1 - shard]

        async def hold_and_kill(
            survivor: str = survivor, name: str = name, shard: int = shard, may_start: Path = may_start
        ) -> Tally:
            load = asyncio.create_task(volley([survivor], f"{name}.default.galaxy.local", 50, 120))
            await until_held(service, 1 - shard, 50)
            service.kill(f"dispatch-{shard}")
            may_start.touch()  # noqa: ASYNC240
            return await load

        tally = asyncio.run(hold_and_kill())
        assert tally.ok == 50, str(tally)
        assert len(tally.pids) <= 2
        service.galaxy("delete", "isvc", name)
        service.wait("whole again", lambda: service.whole(PARTS))
