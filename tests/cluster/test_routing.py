"""Affinity, the choice of a prefill instance, and a pair's scaling by tokens, on a cluster of real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtimes.vllm_pd.home_client import Computed, HomeLeases, Lease, NoPrefill, Wanted
from runtimes.vllm_pd.load import Load
from tests.support.embedded import Embedded, echo_service

pytestmark = pytest.mark.cluster

GROUP = "default/tokens"


def instances(cluster: Embedded, service: str) -> dict[str, int]:
    """Those that are ready, with their pids, by their names."""
    return {
        i["id"]: i["pid"]
        for i in sorted(cluster.status()["instances"], key=lambda i: str(i["id"]))
        if i["revision"].startswith(f"default/{service}-predictor-") and i["state"] == "ready"
    }


def known(cluster: Embedded, service: str) -> int:
    """How many are ready as far as their home knows: it hears of them from their nodes."""
    told = [of for function in cluster.status()["functions"] for of in function.get("revisions") or ()]
    mine = [of for of in told if of["home"] and of["revision"].startswith(f"default/{service}-predictor-")]
    return sum(int(of["ready"]) for of in mine)


def asked(cluster: Embedded, shard: int, host: str, session: str) -> tuple[int, str]:
    """Who answered, and the request's id."""
    request = urllib.request.Request(
        f"http://{cluster.run_file(f'dispatch-{shard}')['http']}/",
        json.dumps({"user": session}).encode(),
        {"host": host, "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["pid"], answer.headers["x-request-id"]


def test_sessions_keep_their_instance_on_every_shard_and_move_only_when_it_dies(
    cluster: Embedded, model: str
) -> None:
    host = "chat.default.galaxy.local"
    three = "    minReplicas: 3\n    maxReplicas: 3\n    containerConcurrency: 4\n"
    manifest = echo_service("chat", model, spec=three, annotations={"kserve-galaxy.io/affinity": "session"})
    cluster.apply(manifest.replace("    minReplicas: 0\n", ""))
    sessions = [f"user-{k}" for k in range(40)]

    def used(shard: int) -> set[int]:
        return {asked(cluster, shard, host, s)[0] for s in sessions}

    cluster.wait("three instances", lambda: len(instances(cluster, "chat")) == 3)
    three_of = set(instances(cluster, "chat").values())
    cluster.wait("both shards know them", lambda: used(0) == used(1) == three_of)
    before = {s: asked(cluster, k % 2, host, s) for k, s in enumerate(sessions)}
    assert {s: asked(cluster, (k + 1) % 2, host, s)[0] for k, s in enumerate(sessions)} == {
        s: pid for s, (pid, _) in before.items()
    }
    assert len({pid for pid, _ in before.values()}) == 3
    explained = cluster.galaxy("explain", before[sessions[0]][1])
    assert "session: its first choice" in explained
    victim = before[sessions[0]][0]
    os.kill(victim, signal.SIGKILL)
    cluster.wait("another in its place", lambda: len(three_of | used(0)) == 4 and victim not in used(0))
    cluster.wait("at the other shard, too", lambda: used(1) == used(0))
    assert len(instances(cluster, "chat")) == 3
    after = {s: asked(cluster, 1, host, s)[0] for s in sessions}
    stayed = [s for s, (pid, _) in before.items() if pid != victim and after[s] == pid]
    others = [s for s, (pid, _) in before.items() if pid != victim]
    new = set(after.values()) - {pid for pid, _ in before.values()}
    assert len(new) == 1
    assert all(after[s] in new for s in others if s not in stayed), (
        "the new one has taken what it wins, and no more"
    )
    assert stayed
    cluster.galaxy("delete", "isvc", "chat")


def member(role: str, model: str) -> str:
    notes = {
        "kserve-galaxy.io/role": role,
        "kserve-galaxy.io/pd-group": "tokens",
        "kserve-galaxy.io/pd-ratio": "1:2..2:1",
        "autoscaling.knative.dev/initial-scale": "1",
        "autoscaling.knative.dev/window": "6s",
    }
    bounds = "    minReplicas: 1\n    maxReplicas: 6\n"
    manifest = echo_service(f"tokens-{role}", model, spec=bounds, annotations=notes)
    return manifest.replace("    minReplicas: 0\n", "")


@asynccontextmanager
async def decode(cluster: Embedded, instance: str) -> AsyncIterator[HomeLeases]:
    """What a decode instance's front has."""
    socket = str(next((cluster.data / "nodes").glob("*/agent.sock"), ""))
    leases = HomeLeases(GROUP, instance, f"unix:{socket}", (cluster.data / "cluster.key").read_bytes(), 30.0)
    try:
        yield leases
    finally:
        await leases.close()


def test_a_pair_chooses_and_scales_by_tokens(cluster: Embedded, model: str) -> None:
    for role in ("prefill", "decode"):
        cluster.apply(member(role, model))

    def count(role: str) -> int:
        return len(instances(cluster, f"tokens-{role}"))

    cluster.wait("one of each", lambda: count("prefill") >= 1 and count("decode") >= 1)
    (name,) = instances(cluster, "tokens-decode")

    async def there(role: str) -> dict[str, int]:
        """Leases are kept meanwhile."""
        return await asyncio.to_thread(instances, cluster, f"tokens-{role}")

    async def nobody_is_left(leases: HomeLeases) -> None:
        """Where all are excluded; one may become ready after they were listed."""
        everyone: tuple[str, ...] = ()
        while more := (await there("prefill")).keys() - set(everyone):
            everyone += tuple(more)
            try:
                lease = await leases.lease("u", 10, wanted=Wanted(excluded=everyone))
            except NoPrefill as refused:
                said = str(refused)
                break
            assert lease.instance not in everyone
            await leases.release(lease)
        else:
            raise AssertionError(f"one was leased that is none of {everyone}")
        assert "leaves every prefill instance alone" in said

    async def many_prompts() -> list[Lease]:
        """Prompts for ten seconds of one instance's work come at once."""
        async with decode(cluster, name) as leases:
            first = await leases.lease("r", 1000)
            await leases.release(first, "", Computed(1000, 100.0, 101.0))
            given = [await leases.lease(f"r{k}", 1000) for k in range(10)]
            while await asyncio.to_thread(known, cluster, "tokens-prefill") < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            later = [await leases.lease(f"s{k}", 1000) for k in range(4)]
            out = later[0].instance
            elsewhere = await leases.lease("t", 10, wanted=Wanted(excluded=(out,)))
            assert elsewhere.instance != out
            await nobody_is_left(leases)
            while len(await there("decode")) < 3:  # noqa: ASYNC110  (pd-ratio raises it)
                await asyncio.sleep(0.1)
            for lease in (*given, *later, elsewhere):
                await leases.release(lease)
            return later

    later = asyncio.run(asyncio.wait_for(many_prompts(), 250))
    assert len({lease.instance for lease in later}) == 4, "each goes to one where nothing waits"
    assert all("0 tokens wait there" in lease.why for lease in later)
    assert count("decode") <= 6

    async def long_answers() -> None:
        """Every decode instance says that it is full, and generates 900 tokens a second."""
        names: dict[str, int] = {}

        async def say(leases: HomeLeases) -> None:
            """As often as they do, however long it takes to look who there is."""
            clock = asyncio.get_running_loop().time
            since = clock()
            while True:
                await asyncio.sleep(0.5)
                span_s, since = clock() - since, clock()
                for leases._instance in tuple(names):
                    await leases.report(Load(round(900 * span_s), span_s, 1.0, 0))

        async with decode(cluster, name) as leases:
            saying = asyncio.create_task(say(leases))
            while len(names) < 6:
                found = await there("decode")
                names.clear()
                names.update(found)
            saying.cancel()

    asyncio.run(asyncio.wait_for(long_answers(), 250))
    for role in ("prefill", "decode"):
        cluster.galaxy("delete", "isvc", f"tokens-{role}")
