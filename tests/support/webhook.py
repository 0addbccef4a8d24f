"""A webhook on real sockets, its Secret and configurations in the fake API server; reviews are sent to it by TLS."""

from __future__ import annotations

import contextlib
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from autoscaler_shim.webhook.keeper import NAME
from autoscaler_shim.webhook.settings import Settings
from autoscaler_shim.webhook.webhook import Webhook
from kserve_ext.cli.knative.kustomize import MANIFESTS, build
from kserve_ext.kube.kinds import MUTATING_WEBHOOKS, SECRETS, VALIDATING_WEBHOOKS
from tests.support.api_objects import Obj
from tests.support.api_server import ApiServer

PLACE = "knative-serving"
HOST = f"{NAME}.{PLACE}.svc"
CONFIGURATIONS = (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)
_OBJECTS = {
    key.kind: obj
    for key, obj in build(
        MANIFESTS / "overlays" / "knative", [MANIFESTS / "components" / "webhook"]
    ).objects.items()
    if key.name == NAME
}


def install(server: ApiServer) -> None:
    """What manifests/components/webhook applies, as far as the process looks at it."""
    for kind in (SECRETS, *CONFIGURATIONS):
        server.put(kind, _OBJECTS[kind.kind])


def authorities(server: ApiServer) -> set[bytes]:
    """Whom the API server trusts, over all webhooks configured."""
    found = (server.get(kind, "", NAME) for kind in CONFIGURATIONS)
    return {
        b64decode(hook["clientConfig"].get("caBundle") or "")
        for obj in found
        for hook in (obj or {})["webhooks"]
    }


@contextlib.asynccontextmanager
async def running(server: ApiServer, drain_s: float = 0.0) -> AsyncIterator[Webhook]:
    async with server.client() as client:
        webhook = Webhook(Settings(PLACE, 0, 0, drain_s, "127.0.0.1"), client)
        await webhook.start()
        try:
            yield webhook
        finally:
            await webhook.stop()


async def send(server: ApiServer, webhook: Webhook, path: str, body: Any) -> tuple[int, Any]:
    """As the API server does: by the Service's name, trusting what the configurations say."""
    trust = ssl.create_default_context(cadata=b"".join(authorities(server)).decode())
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"https://127.0.0.1:{webhook.server.port}{path}", json=body, ssl=trust, server_hostname=HOST
        ) as response,
    ):
        is_json = response.content_type == "application/json"
        return response.status, await (response.json() if is_json else response.text())


async def get(webhook: Webhook, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{webhook.server.metrics_port}{path}") as response,
    ):
        return response.status, await response.text()


def review(annotations: Obj, kind: str = "Revision") -> Obj:
    obj = {"metadata": {"name": "chat", "namespace": "team", "annotations": annotations}}
    named = {"group": "serving.knative.dev", "version": "v1", "kind": kind}
    request = {"uid": "7", "kind": named, "operation": "CREATE", "object": obj, "oldObject": None}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
