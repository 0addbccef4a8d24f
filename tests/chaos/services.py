"""What is served in a chaos run, and how it is asked for: from zero, in bursts, steadily, as streams, past bounds.

Everything but the hog fits into the cluster all at once, so that a request for it that is refused for want of room
in a calm cluster is a fault. Which service is asked when comes from the seed; how fast, from the machine.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any

from kserve_ext.core.facts import Command, Hold, Model, Resources, Revision, Scale
from kserve_ext.core.ids import RevisionKey
from tests.chaos.cluster import Cluster, host_of
from tests.chaos.load import Client

INSTANCE = Path(__file__).with_name("instance.py")
SMALL = Resources(cpu_milli=500, memory_mib=64)
#: Nearly as large as a node: three of them fill three nodes beside the rest
LARGE = Resources(cpu_milli=1700, memory_mib=256)
SHORT = Scale(min=0, max=3, initial=0, window_s=6.0, grace_s=2.0)


def revision(name: str, history: Path, **changes: Any) -> Revision:
    limit = changes.get("concurrency", 0)
    argv = (sys.executable, "-S", "-E", str(INSTANCE), "--limit", str(limit), "--history", str(history))
    key = RevisionKey(f"chaos/{name}")
    base = Revision(
        key,
        key,
        1,
        Command((*argv, "--port", "0"), drain_s=4.0, start_timeout_s=30.0),
        Model(),
        SMALL,
        SHORT,
        Hold(seconds=25.0, requests=200),
        timeout_s=40.0,
        created_at=time.time(),
        continuation=False,
    )
    return base._replace(**changes)


def standing(history: Path) -> list[Revision]:
    """Those that are there all the time."""

    def make(name: str, **changes: Any) -> Revision:
        return revision(name, history, **changes)

    forked = make("forked", scale=SHORT._replace(max=2))
    command = forked.command._replace(
        argv=(sys.executable, "-m", "tests.chaos.runtime", *forked.command.argv[4:]),
        zygote="tests.chaos.runtime",
    )
    return [
        make("steady", scale=SHORT._replace(min=1, initial=1), concurrency=4),
        make("burst", scale=SHORT._replace(max=4, target=4.0)),
        make("streams", scale=SHORT._replace(max=2)),
        make("tight", scale=SHORT._replace(max=1), concurrency=1, hold=Hold(seconds=25.0, requests=12)),
        make("pair-prefill", scale=SHORT._replace(max=1), role="prefill", group="chaos/pair"),
        make("pair-decode", scale=SHORT._replace(max=1), role="decode", group="chaos/pair"),
        forked._replace(command=command),
    ]


def hog(history: Path) -> Revision:
    """Wants more than there is room for."""
    scale = SHORT._replace(max=8, target=1.0)
    return revision("hog", history, needs=LARGE, scale=scale, hold=Hold(seconds=4.0, requests=50))


class Load:
    """Runs until cancelled; then `close`."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._visits = 0

    async def run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        shards = list(self.cluster.shards)
        works = [self._steady(shard, until) for shard in shards for _ in range(2)]
        works += [self._bursts(until), self._streams(until), self._visitors(until), self._full(until)]
        await asyncio.gather(*works)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _client(self, shard: str) -> Client:
        return Client(self.cluster.said, shard, self.cluster.http(shard))

    async def _steady(self, shard: str, until: float) -> None:
        client, key = self._client(shard), "chaos/steady"
        rng = random.Random(self.rng.random())
        while asyncio.get_running_loop().time() < until:
            # Now and then one that outlives the leases of a Dispatch function that is paused.
            delay = 8.0 if rng.random() < 0.02 else rng.choice((0.0, 0.02, 0.02, 0.1, 0.05))
            await client.ask(host_of(key), key, f"/?delay={delay}")
            await asyncio.sleep(0.08)
        client.close()

    async def _bursts(self, until: float) -> None:
        while asyncio.get_running_loop().time() < until:
            key = self.rng.choice(("chaos/burst", "chaos/tight", "chaos/pair-decode", "chaos/forked"))
            count = self.rng.choice((1, 4, 20)) if key == "chaos/burst" else self.rng.choice((1, 5))
            delay = self.rng.choice((0.01, 0.2, 0.8))
            for k in range(count):
                self._once(key, f"/?delay={delay}", k)
            await asyncio.sleep(self.rng.uniform(0.5, 6.0))

    async def _streams(self, until: float) -> None:
        while asyncio.get_running_loop().time() < until:
            for k in range(self.rng.choice((1, 3))):
                self._once("chaos/streams", f"/stream?n={self.rng.choice((5, 40))}&gap=0.1", k)
            await asyncio.sleep(self.rng.uniform(1.0, 5.0))

    async def _visitors(self, until: float) -> None:
        """Services that come, are asked, and go again."""
        while asyncio.get_running_loop().time() + 3 < until:
            self._visits += 1
            visitor = revision(f"visitor-{self._visits}", self.cluster.history, scale=SHORT._replace(max=1))
            self.cluster.apply(visitor)
            await asyncio.sleep(self.rng.uniform(0.2, 1.5))
            for k in range(2):
                self._once(visitor.key, "/?delay=0.05", k)
            await asyncio.sleep(self.rng.uniform(0.5, 5.0))
            self.cluster.delete(visitor.key)

    async def _full(self, until: float) -> None:
        """For a while there is less room than is asked for."""
        while asyncio.get_running_loop().time() + 20 < until:
            await asyncio.sleep(self.rng.uniform(15.0, 30.0))
            self.cluster.apply(hog(self.cluster.history))
            await asyncio.sleep(0.5)
            for k in range(8):
                self._once("chaos/hog", "/?delay=1.0", k)
            await asyncio.sleep(6.0)
            self.cluster.delete("chaos/hog")

    def _once(self, key: str, path: str, number: int) -> None:
        shards = list(self.cluster.shards)
        task = asyncio.ensure_future(self._ask(shards[number % len(shards)], key, path))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, shard: str, key: str, path: str) -> None:
        client = self._client(shard)
        await client.ask(host_of(key), key, path)
        client.close()
