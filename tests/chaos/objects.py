"""The load of the cluster `objects`: InferenceServices, applied, changed and deleted through the admin API.

What the objects process has acknowledged it may not forget, whatever dies. It is asked until it answers, and every
answer is written down with the number of the revision that it names. `checks/objects.py` says what has to follow.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any, Final

import aiohttp

from kserve_ext.api.access import token
from tests.chaos.cluster import Cluster
from tests.chaos.load import Client
from tests.chaos.services import INSTANCE

NAMESPACE: Final = "chaos"
SERVICES: Final = 4
AGAIN_S: Final = 0.2
TIMEOUT_S: Final = 5.0
#: An object that comes and goes.
VISITOR: Final = "visitor"


class Load:
    """Runs for so long; then everything that it has applied is deleted."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self._base = f"http://{cluster.admin}/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}"
        self._headers = {"Authorization": f"Bearer {token((cluster.data / 'cluster.key').read_bytes())}"}
        self._names: set[str] = set()
        self._asked: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        async with aiohttp.ClientSession(headers=self._headers) as session:
            works = [self._kept(session, f"kept-{k}", until) for k in range(SERVICES)]
            await asyncio.gather(*works, self._visitors(session, until))
            if self._asked:
                await asyncio.wait(self._asked)
            for name in sorted(self._names):
                await self._delete(session, name)

    async def _kept(self, session: aiohttp.ClientSession, name: str, until: float) -> None:
        """It is changed now and then, and asked all the time, through both Dispatch functions."""
        rng, loop = random.Random(f"{name}/{self.rng.random()}"), asyncio.get_running_loop()
        version, change_at = 0, 0.0
        shards = list(self.cluster.shards)
        while loop.time() < until:
            if loop.time() >= change_at:
                version += 1
                await self._apply(session, name, version, until)
                change_at = loop.time() + rng.uniform(8.0, 30.0)
            self._ask(rng.choice(shards), name, rng.choice((0.01, 0.1, 0.5)))
            await asyncio.sleep(rng.uniform(0.1, 0.8))

    async def _visitors(self, session: aiohttp.ClientSession, until: float) -> None:
        loop, number = asyncio.get_running_loop(), 0
        while loop.time() + 5.0 < until:
            number += 1
            name = f"{VISITOR}-{number}"
            await self._apply(session, name, 1, until)
            await asyncio.sleep(self.rng.uniform(0.5, 8.0))
            self._ask(self.rng.choice(list(self.cluster.shards)), name, 0.05)
            await asyncio.sleep(self.rng.uniform(0.5, 6.0))
            await self._delete(session, name)
            await asyncio.sleep(self.rng.uniform(1.0, 8.0))
            self._ask(self.rng.choice(list(self.cluster.shards)), name, 0.05)

    def _ask(self, shard: str, name: str, delay_s: float) -> None:
        task = asyncio.create_task(self._once(shard, name, delay_s))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _once(self, shard: str, name: str, delay_s: float) -> None:
        client = Client(self.cluster.said, shard, self.cluster.http(shard))
        await client.ask(f"{name}.{NAMESPACE}.galaxy.local", key_of(name), f"/?delay={delay_s}")
        client.close()

    async def _apply(self, session: aiohttp.ClientSession, name: str, version: int, until: float) -> None:
        self._names.add(name)
        said = await self._until_answered(session, "PATCH", name, self._document(name, version), until)
        if said is not None:
            status = said.get("status") or {}
            latest = status.get("components", {}).get("predictor", {}).get("latestCreatedRevision", "")
            number = int(latest.rpartition("-")[2] or 0)
            self.cluster.said.say("applied", revision=key_of(name), version=version, number=number)

    async def _delete(self, session: aiohttp.ClientSession, name: str) -> None:
        self.cluster.said.say("removing", revision=key_of(name))
        if await self._until_answered(session, "DELETE", name, None, float("inf")) is not None:
            self.cluster.said.say("removed", revision=key_of(name))

    async def _until_answered(
        self, session: aiohttp.ClientSession, method: str, name: str, body: Any, until: float
    ) -> dict[str, Any] | None:
        """None: it was not answered before the time was over; 404 answers that it is gone."""
        loop = asyncio.get_running_loop()
        url, timeout = f"{self._base}/inferenceservices/{name}", aiohttp.ClientTimeout(TIMEOUT_S)
        began = loop.time()
        while True:
            status, text = 0, ""
            try:
                async with session.request(method, url, json=body, timeout=timeout) as response:
                    status = response.status
                    said: dict[str, Any] = await response.json()
                    text = str(said.get("message", ""))
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                text = f"{type(error).__name__} {error}"
            fine = status in (200, 201) or (method == "DELETE" and status == 404)
            self.cluster.said.say(
                "admin", method=method, revision=key_of(name), status=status, why=text, began=began
            )
            if fine:
                return said
            if loop.time() > until:
                return None
            await asyncio.sleep(AGAIN_S)

    def _document(self, name: str, version: int) -> dict[str, Any]:
        args = ["--limit", "2", "--history", str(self.cluster.history), "--port", "$(PORT)"]
        container = {
            "name": "kserve-container",
            "image": "chaos.example/instance:1",
            "command": [sys.executable, "-S", "-E", str(INSTANCE)],
            "args": args,
            "env": [{"name": "VERSION", "value": str(version)}],
            "resources": {"requests": {"cpu": "300m", "memory": "64Mi"}},
        }
        notes = {
            "autoscaling.knative.dev/window": "6s",
            "autoscaling.knative.dev/initial-scale": "0",
            "kserve-galaxy.io/hold-seconds": "25",
        }
        predictor = {
            "minReplicas": 0,
            "maxReplicas": 2,
            "containerConcurrency": 2,
            "timeout": 40,
            "containers": [container],
        }
        return {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": notes},
            "spec": {"predictor": predictor},
        }


class One(Load):
    """A service that is applied once, and asked at the beginning and at the end."""

    async def run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with aiohttp.ClientSession(headers=self._headers) as session:
            await self._apply(session, "kept", 1, began + seconds)
            for at in (0.5, seconds - 1.0):
                await asyncio.sleep(max(0.0, began + at - loop.time()))
                await self._once("dispatch-0", "kept", 0.05)
            await self._delete(session, "kept")


def key_of(name: str) -> str:
    """As what requests of it are written down."""
    return f"objects/{name}"
