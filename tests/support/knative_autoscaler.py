"""An autoscaler on loopback: a fake API server, the part of Knative's controller that it needs, pods that can be
scraped, and an activator's websocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
from aiohttp import web

from autoscaler_shim.knative.autoscaler import Autoscaler
from autoscaler_shim.knative.settings import Settings
from kserve_ext.api.knative.conditions import find
from kserve_ext.core.knative.buckets import Holder
from kserve_ext.kube.kinds import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    POD_AUTOSCALERS,
    PODS,
    SERVERLESS_SERVICES,
    Kind,
)
from kserve_ext.wire.stats import Stat, StatMessage, encode, encode_stat
from tests.support.api_objects import Obj
from tests.support.api_server import ApiServer

SYSTEM, NAMESPACE, NAME = "knative-serving", "default", "hello-00001"
DEPLOYMENT = f"{NAME}-deployment"
LONG_AGO = "2020-01-01T00:00:00Z"
KPA = "kpa.autoscaling.knative.dev"
LABELS = {
    "serving.knative.dev/revision": NAME,
    "serving.knative.dev/revisionUID": "u",
    "serving.knative.dev/configuration": "hello",
    "serving.knative.dev/service": "hello",
}


def run(test: Coroutine[Any, Any, None], seconds: float = 150) -> None:
    """The time limit only ends a hang."""
    asyncio.run(asyncio.wait_for(test, seconds))


async def until(holds: Callable[[], object]) -> None:
    """Waits for something of which no event tells."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def settings(pod: str = "autoscaler-0", ip: str = "127.0.0.1", **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "holder": Holder(pod, ip),
        "namespace": SYSTEM,
        "domain": "cluster.local",
        "stats_port": 0,
        "metrics_port": 0,
        "host": "127.0.0.1",
        **changes,
    }
    return Settings(**values)


@contextlib.asynccontextmanager
async def autoscaler(api: ApiServer, **changes: Any) -> AsyncIterator[Autoscaler]:
    async with api.client() as client:
        made = Autoscaler(settings(**changes), client)
        try:
            await made.start()
            yield made
        finally:
            await made.stop()


def put_config(api: ApiServer, name: str, **data: str) -> None:
    keys = {key.replace("_", "-"): value for key, value in data.items()}
    api.put(CONFIG_MAPS, {"metadata": {"namespace": SYSTEM, "name": name}, "data": keys})


def put_revision(
    api: ApiServer,
    replicas: int = 0,
    annotations: dict[str, str] | None = None,
    status: Obj | None = None,
    class_: str = KPA,
    name: str = NAME,
) -> Obj:
    """The PodAutoscaler and the Deployment, as the controller makes them. Activators are always in the path."""
    labels = {**LABELS, "serving.knative.dev/revision": name}
    notes = {
        "autoscaling.knative.dev/class": class_,
        "autoscaling.knative.dev/target-burst-capacity": "-1",
        **(annotations or {}),
    }
    api.put(
        DEPLOYMENTS,
        {
            "metadata": {"namespace": NAMESPACE, "name": f"{name}-deployment", "labels": labels},
            "spec": {"replicas": replicas},
        },
    )
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{name}-deployment"}
    owner = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Revision",
        "name": name,
        "uid": f"uid-of-{name}",
    }
    metadata = {"namespace": NAMESPACE, "name": name, "labels": labels, "annotations": notes}
    pa: Obj = {
        "metadata": {**metadata, "ownerReferences": [{**owner, "controller": True}]},
        "spec": {"scaleTargetRef": reference, "protocolType": "http1", "reachability": "Reachable"},
    }
    if status is not None:
        pa["status"] = status
    return api.put(POD_AUTOSCALERS, pa)


def state(active: str, since: str = LONG_AGO, initialized: bool = True, desired: int = 0) -> Obj:
    """A PodAutoscaler's status as it was left."""
    conditions = [
        {"type": "Active", "status": active, "lastTransitionTime": since},
        {"type": "ScaleTargetInitialized", "status": "True" if initialized else "Unknown"},
    ]
    return {"conditions": conditions, "serviceName": NAME, "desiredScale": desired, "actualScale": desired}


def put_sks(api: ApiServer, pa: Obj, mode: str = "Proxy", proxying_since: str = LONG_AGO) -> None:
    """What the controller makes of the ServerlessService: both services, and whom they lead to."""
    metadata = pa["metadata"]
    name = metadata["name"]
    owner = {"kind": "PodAutoscaler", "name": name, "uid": metadata["uid"], "controller": True}
    found = api.get(SERVERLESS_SERVICES, NAMESPACE, name)
    spec = found["spec"] if found else {"mode": mode, "numActivators": 2}
    proxying = {
        "type": "ActivatorEndpointsPopulated",
        "status": "True" if spec["mode"] == "Proxy" else "False",
        "lastTransitionTime": proxying_since,
    }
    api.put(
        SERVERLESS_SERVICES,
        {
            "metadata": {"namespace": NAMESPACE, "name": name, "ownerReferences": [owner]},
            "spec": spec,
            "status": {
                "observedGeneration": 1,
                "serviceName": name,
                "privateServiceName": f"{name}-private",
                "conditions": [proxying, {"type": "Ready", "status": "True"}],
            },
        },
    )


def put_pod(
    api: ApiServer, name: str, ip: str = "127.0.0.1", ready: bool = True, revision: str = NAME
) -> None:
    api.put(
        PODS,
        {
            "metadata": {
                "namespace": NAMESPACE,
                "name": name,
                "labels": {**LABELS, "serving.knative.dev/revision": revision},
            },
            "status": {
                "phase": "Running",
                "podIP": ip,
                "startTime": LONG_AGO,
                "conditions": [{"type": "Ready", "status": str(ready)}],
            },
        },
    )


def replicas(api: ApiServer, name: str = NAME) -> int:
    found = api.get(DEPLOYMENTS, NAMESPACE, f"{name}-deployment")
    return int(found["spec"]["replicas"]) if found else -1


def condition(api: ApiServer, type_: str, kind: Kind = POD_AUTOSCALERS, name: str = NAME) -> tuple[str, str]:
    """Its status and reason."""
    obj = api.get(kind, NAMESPACE, name) or {}
    found = find((obj.get("status") or {}).get("conditions"), type_) or {}
    return found.get("status", ""), found.get("reason", "")


def status(api: ApiServer, name: str = NAME) -> Obj:
    found = api.get(POD_AUTOSCALERS, NAMESPACE, name) or {}
    return found.get("status") or {}


def spec(api: ApiServer, kind: Kind, name: str = NAME) -> Obj:
    return (api.get(kind, NAMESPACE, name) or {}).get("spec") or {}


def message(concurrency: float, requests: float = 1.0, pod: str = "act-0", name: str = NAME) -> StatMessage:
    return StatMessage(NAMESPACE, name, Stat(pod, concurrency, request_count=requests))


class Activator:
    """What an activator is to the autoscaler: a websocket on which statistics come."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    async def report(
        self, concurrency: float, requests: float = 1.0, pod: str = "act-0", name: str = NAME
    ) -> None:
        await self.ws.send_bytes(encode([message(concurrency, requests, pod, name)]))


@contextlib.asynccontextmanager
async def activator(port: int, host: str = "127.0.0.1") -> AsyncIterator[Activator]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"ws://{host}:{port}/", max_msg_size=0) as ws,
    ):
        yield Activator(ws)


class QueueProxies:
    """Pods' statistics on several loopback addresses and one port; what each answers can be changed."""

    def __init__(self) -> None:
        self.answers: dict[str, Stat | int | bytes] = {}
        self.asked: list[str] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> QueueProxies:
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        host = request.transport.get_extra_info("sockname")[0]
        self.asked.append(host)
        answer = self.answers.get(host, 404)
        if isinstance(answer, int):
            return web.Response(status=answer)
        body = encode_stat(answer) if isinstance(answer, Stat) else answer
        return web.Response(body=body, headers={"Content-Type": "application/protobuf"})


@contextlib.asynccontextmanager
async def cluster(**changes: object) -> AsyncIterator[tuple[ApiServer, Autoscaler, Activator]]:
    async with (
        ApiServer() as api,
        autoscaler(api, **changes) as made,
        activator(made.stat_server.port) as reporter,
    ):
        yield api, made, reporter


async def until_written(api: ApiServer) -> None:
    await api.until(lambda: status(api).get("observedGeneration"))
