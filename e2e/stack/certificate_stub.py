"""Signs what Knative's Certificates ask for, as cert-manager would for it, and says that they are ready.

Each Certificate's Secret is made once, with the authority's own certificate beside it; a test that wants to see one
renewed writes another pair into it.
"""

from __future__ import annotations

import asyncio
import base64

import aiohttp

from e2e.stack.certificates import Authority
from e2e.stack.ingress_stub import conditions
from e2e.stack.watch import Object, follow, say

_PATH = "/apis/networking.internal.knative.dev/v1alpha1"


def secret_data(authority: Authority, names: list[str]) -> dict[str, str]:
    """What a Secret of that kind holds; the authority may be left out where trust comes from elsewhere."""
    pair = authority.issue(names[0], names)
    content = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}
    return {name: base64.b64encode(pem).decode() for name, pem in content.items()}


async def serve(client: aiohttp.ClientSession) -> None:
    authority = Authority("e2e-internal")
    async with asyncio.TaskGroup() as tasks:

        def changed(change: str, certificate: Object) -> None:
            seen = (certificate.get("status") or {}).get("observedGeneration")
            if change == "SET" and seen != certificate["metadata"]["generation"]:
                tasks.create_task(_issue(client, authority, certificate))

        await follow(client, f"{_PATH}/certificates", changed)


async def _issue(client: aiohttp.ClientSession, authority: Authority, certificate: Object) -> None:
    metadata, spec = certificate["metadata"], certificate["spec"]
    namespace, name = metadata["namespace"], metadata["name"]
    secret = {"metadata": {"name": spec["secretName"]}, "data": secret_data(authority, spec["dnsNames"])}
    status = {"observedGeneration": metadata["generation"], "conditions": conditions("Ready")}
    try:
        async with client.post(f"/api/v1/namespaces/{namespace}/secrets", json=secret) as response:
            if response.status not in (201, 409):
                say(f"secret of certificate {name}: {response.status} {await response.text()}")
        async with client.patch(
            f"{_PATH}/namespaces/{namespace}/certificates/{name}/status",
            json={"status": status},
            headers={"Content-Type": "application/merge-patch+json"},
        ) as response:
            if response.status not in (200, 404):
                say(f"certificate {name}: {response.status} {await response.text()}")
    except (OSError, aiohttp.ClientError) as error:
        say(f"certificate {name}: {error!r}")
