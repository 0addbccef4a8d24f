"""kill -9 of each part under load: invariant 2 to the letter, and the cluster whole again (how soon is printed)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable

import aiohttp
import pytest

from tests.cluster.test_at_zero import instances, shard_urls
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


def whole(cluster: Embedded) -> bool:
    """Every part is in the view, and runs as the process that the run file names."""
    status = cluster.json("status")
    members = {m["id"] for m in status["members"]}
    return set(PARTS) - {"objects-0", "controller-0"} <= members and all(alive(cluster, p) for p in PARTS)


def alive(cluster: Embedded, part: str) -> bool:
    try:
        os.kill(cluster.pid(part), 0)
    except (OSError, ValueError):
        return False
    return True


def under_load(cluster: Embedded, act: Callable[[], None], after_s: float = 2.0) -> dict[str, Tally]:
    """Runs act() in the middle of a steady load over both shards; the tally of each shard's URL."""
    done = threading.Event()
    result: dict[str, Tally] = {}

    def drive() -> None:
        result.update(asyncio.run(steady(shard_urls(cluster), HOST, 12, done.is_set)))

    driver = threading.Thread(target=drive)
    driver.start()
    time.sleep(1.0)  # the load's own length, not a wait for anything
    try:
        act()
        time.sleep(after_s)
    finally:
        done.set()
        driver.join(90)
    return result


@pytest.mark.parametrize("part", PARTS)
def test_kill_of_a_part_under_load(service: Embedded, part: str) -> None:
    def act() -> None:
        old = service.kill(part)
        restarted = service.wait(
            f"{part} restarted", lambda: service.pid(part) != old and alive(service, part)
        )
        took = restarted + service.wait("the cluster is whole again", lambda: whole(service))
        print(f"{part}: whole again after {took:.1f} s")

    urls = shard_urls(service)
    tallies = under_load(service, act)
    for url, tally in tallies.items():
        assert tally.sent == tally.accounted
        assert tally.ok > 50, f"{url}: {tally}"
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
            url = f"{shard_urls(service)[0]}stream?n=200&gap=0.05"
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
    service.wait("whole again", lambda: whole(service))


def test_the_home_dies_while_it_holds_the_demand_of_the_other_shard(service: Embedded, model: str) -> None:
    """Whichever shard is home: one of the two kills hits it. What the survivor holds is answered."""
    for shard in (0, 1):
        name = f"orphan-{shard}"
        slow = echo_service(name, model, spec="    maxReplicas: 2\n    containerConcurrency: 2\n")
        service.apply(slow)
        survivor = shard_urls(service)[1 - shard]

        async def hold_and_kill(survivor: str = survivor, name: str = name, shard: int = shard) -> Tally:
            load = asyncio.create_task(volley([survivor], f"{name}.default.galaxy.local", 50))
            await asyncio.sleep(0.02)
            service.kill(f"dispatch-{shard}")
            return await load

        tally = asyncio.run(hold_and_kill())
        assert tally.ok == 50, str(tally)
        assert len(tally.pids) <= 2
        service.galaxy("delete", "isvc", name)
        service.wait("whole again", lambda: whole(service))
