"""Says of every Knative Ingress that it is ready, as an ingress implementation would once it serves it.

What an ingress then does with requests, the tests do themselves (e2e/behaviours/ingress.py): they read the same
objects, and go to the endpoints of the public Services with the two headers that an ingress adds.
"""

from __future__ import annotations

import asyncio
import datetime

import aiohttp

from e2e.stack.watch import Object, follow, say

_PATH = "/apis/networking.internal.knative.dev/v1alpha1"
_CONDITIONS = ("LoadBalancerReady", "NetworkConfigured", "Ready")


def due(ingress: Object) -> bool:
    status = ingress.get("status") or {}
    ready = any(
        entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions") or []
    )
    return not ready or status.get("observedGeneration") != ingress["metadata"]["generation"]


def conditions(*names: str) -> list[dict[str, str]]:
    """All of them true, since now."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [{"type": name, "status": "True", "lastTransitionTime": now} for name in names]


async def _mark(client: aiohttp.ClientSession, ingress: Object) -> None:
    metadata = ingress["metadata"]
    balancer = {"ingress": [{"domainInternal": "ingress.e2e.svc.cluster.local"}]}
    status = {
        "observedGeneration": metadata["generation"],
        "publicLoadBalancer": balancer,
        "privateLoadBalancer": balancer,
        "conditions": conditions(*_CONDITIONS),
    }
    path = f"{_PATH}/namespaces/{metadata['namespace']}/ingresses/{metadata['name']}/status"
    try:
        async with client.patch(
            path, json={"status": status}, headers={"Content-Type": "application/merge-patch+json"}
        ) as response:
            if response.status not in (200, 404):
                say(f"ingress {metadata['name']}: {response.status} {await response.text()}")
    except (OSError, aiohttp.ClientError) as error:
        say(f"ingress {metadata['name']}: {error!r}")


async def serve(client: aiohttp.ClientSession) -> None:
    async with asyncio.TaskGroup() as tasks:

        def changed(change: str, ingress: Object) -> None:
            if change == "SET" and due(ingress):
                tasks.create_task(_mark(client, ingress))

        await follow(client, f"{_PATH}/ingresses", changed)
