"""Held requests, bounds and scale to zero, on a cluster of real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.support.embedded import Embedded, echo_service
from tests.support.load import Tally, one, session, volley

pytestmark = pytest.mark.cluster


def shard_urls(cluster: Embedded) -> list[str]:
    return [f"http://{cluster.run_file(f'dispatch-{k}')['http']}/" for k in range(2)]


def instances(cluster: Embedded, service: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = cluster.status()["instances"]
    return [i for i in found if i["revision"].startswith(f"default/{service}-predictor-")]


def test_a_thousand_requests_at_zero_over_two_shards(cluster: Embedded, model: str) -> None:
    bounds = "    maxReplicas: 3\n    containerConcurrency: 8\n"
    cluster.apply(echo_service("crowd", model, spec=bounds))
    tally = asyncio.run(volley(shard_urls(cluster), "crowd.default.galaxy.local", 1000))
    assert (tally.ok, tally.accounted) == (1000, 1000), str(tally)
    assert 1 <= len(tally.pids) <= 3
    assert tally.peak <= 8, "an instance saw more requests at once than containerConcurrency allows"
    assert len(instances(cluster, "crowd")) <= 3
    cluster.galaxy("delete", "isvc", "crowd")
    cluster.wait("instances of a deleted service end", lambda: not instances(cluster, "crowd"))


def test_scales_back_to_zero_and_wakes_again(cluster: Embedded, model: str) -> None:
    quick = {
        "autoscaling.knative.dev/window": "6s",
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "0s",
    }
    cluster.apply(echo_service("nap", model, annotations=quick))
    first = asyncio.run(volley(shard_urls(cluster), "nap.default.galaxy.local", 4))
    assert first.ok == 4, str(first)
    cluster.wait("scale to zero", lambda: not instances(cluster, "nap"))
    again = asyncio.run(volley(shard_urls(cluster), "nap.default.galaxy.local", 4))
    assert again.ok == 4, str(again)
    assert not first.pids & again.pids


async def held(cluster: Embedded, shard: int, client: aiohttp.ClientSession) -> int:
    """Requests that wait there for an instance."""
    async with client.get(f"http://{cluster.run_file(f'dispatch-{shard}')['admin']}/status") as response:
        return int((await response.json())["held"])


async def until_held(cluster: Embedded, shard: int, count: int) -> None:
    async with asyncio.timeout(100), session() as client:
        while await held(cluster, shard, client) < count:  # noqa: ASYNC110  (it happens in another process)
            await asyncio.sleep(0.05)


def test_a_small_hold_bound_refuses_the_rest_with_429(cluster: Embedded, model: str, tmp_path: Path) -> None:
    """Twenty wait at either shard; what is too much is refused before any instance is there."""
    notes = {"kserve-galaxy.io/hold-requests": "20"}
    slow = "    maxReplicas: 1\n    containerConcurrency: 1\n"
    args = f"      args: ['--until={tmp_path / 'may-start'}']\n"
    cluster.apply(echo_service("small", model, spec=slow, annotations=notes).rstrip() + "\n" + args)
    urls, host, tally = shard_urls(cluster), "small.default.galaxy.local", Tally()

    async def crowd() -> None:
        async with asyncio.timeout(100), session() as client:
            sent = [asyncio.create_task(one(client, urls[k % 2], host, tally)) for k in range(400)]
            while tally.accounted < 360:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            (tmp_path / "may-start").touch()
            await asyncio.gather(*sent)

    asyncio.run(crowd())
    assert (tally.ok, tally.refused, tally.accounted) == (40, {429: 360}, 400), str(tally)
    assert "hold-requests" in tally.reasons[0], "the refusal names the bound that bit"


def test_ten_thousand_requests_against_a_small_bound_do_not_grow_the_dispatch_function(
    cluster: Embedded, model: str
) -> None:
    """Ten volleys of a thousand at a service that can't start in time: 429s at once, and no memory kept."""
    notes = {"kserve-galaxy.io/hold-requests": "50", "kserve-galaxy.io/hold-seconds": "600"}
    slow = "    maxReplicas: 1\n    containerConcurrency: 1\n"
    args = "      args: ['--until=/nowhere']\n"
    cluster.apply(echo_service("flood", model, spec=slow, annotations=notes).rstrip() + "\n" + args)
    url, host = shard_urls(cluster)[0], "flood.default.galaxy.local"

    async def flood() -> tuple[Tally, int, int]:
        """Fifty are held all the while; the rest is refused."""
        total = Tally()
        waiting = asyncio.create_task(volley([url], host, 50, timeout_s=600))
        await until_held(cluster, 0, 50)
        await volley([url], host, 1000)
        before = resident_kib(cluster.pid("dispatch-0"))
        for _ in range(9):
            tally = await volley([url], host, 1000)
            total.sent += tally.sent
            total.refused += tally.refused
        after = resident_kib(cluster.pid("dispatch-0"))
        waiting.cancel()
        return total, before, after

    tally, before, after = asyncio.run(flood())
    assert tally.refused[429] == tally.sent == 9000, str(tally)
    assert after - before < 8 * 1024, f"grew from {before} to {after} KiB"
    cluster.galaxy("delete", "isvc", "flood")


def resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def test_a_service_too_large_for_every_node_says_so(cluster: Embedded, model: str) -> None:
    """At once: nobody waits (five minutes, by default) for a node that there is not."""
    manifest = echo_service("whale", model)
    manifest += "      resources: {requests: {cpu: '64'}}\n"
    cluster.apply(manifest)

    def unschedulable() -> bool:
        conditions = cluster.json("get", "isvc", "whale")["status"]["conditions"]
        ready = next(c for c in conditions if c["type"] == "PredictorReady")
        return (ready["status"], ready["reason"]) == ("False", "Unschedulable")

    cluster.wait("said before any request, once the nodes' size is known", unschedulable)
    tally = asyncio.run(volley(shard_urls(cluster)[:1], "whale.default.galaxy.local", 1, timeout_s=30))
    assert tally.refused[503] == 1, str(tally)
    assert "cpu: needs 64" in tally.reasons[0]

    def said() -> bool:
        conditions = cluster.json("get", "isvc", "whale")["status"]["conditions"]
        return any("cpu: needs 64" in c.get("message", "") for c in conditions)

    cluster.wait("the condition names the resource", said)


def test_a_command_that_fails_at_once_answers_and_sets_a_condition(cluster: Embedded, model: str) -> None:
    cluster.apply(
        echo_service("broken", model).rstrip() + "\n      args: ['--fail=bad flag: no such thing']\n"
    )
    tally = asyncio.run(volley(shard_urls(cluster)[:1], "broken.default.galaxy.local", 1, timeout_s=30))
    assert tally.refused[503] == 1, str(tally)
    assert "bad flag: no such thing" in tally.reasons[0]

    def said() -> bool:
        conditions = cluster.json("get", "isvc", "broken")["status"]["conditions"]
        return any("bad flag" in c.get("message", "") for c in conditions)

    cluster.wait("the condition carries the reason", said)


def test_a_changed_spec_makes_a_new_revision_and_the_old_one_drains(cluster: Embedded, model: str) -> None:
    host = "turn.default.galaxy.local"
    cluster.apply(echo_service("turn", model))
    old = asyncio.run(volley(shard_urls(cluster), host, 2))
    assert old.ok == 2, str(old)
    cluster.apply(echo_service("turn", model).rstrip() + "\n      args: ['--delay=0.01']\n")

    def moved() -> bool:
        tally = asyncio.run(volley(shard_urls(cluster), host, 2))
        assert tally.ok == 2, str(tally)
        return not tally.pids & old.pids

    cluster.wait("traffic on the new revision", moved)
    cluster.wait(
        "the old revision gone",
        lambda: {i["revision"] for i in instances(cluster, "turn")} == {"default/turn-predictor-00002"},
    )
