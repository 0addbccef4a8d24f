"""What `galaxy status` says of the webhook: whether it is there, whether the API server trusts it, what is amiss."""

from __future__ import annotations

import asyncio
import base64
import datetime
from collections.abc import Mapping
from typing import Any, Final

from kserve_ext.cli.knative.rollout import progress
from kserve_ext.kube import certificates
from kserve_ext.kube.client import Client, Kind, KubeError, KubeObject, NotFound
from kserve_ext.kube.kinds import DEPLOYMENTS, MUTATING_WEBHOOKS, SECRETS, VALIDATING_WEBHOOKS

Document = dict[str, Any]
NAME: Final = "galaxy-webhook"
KINDS: Final = (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)


async def look(client: Client, namespace: str) -> Document:
    deployment, secret, *configurations = await asyncio.gather(
        _get(client, DEPLOYMENTS, namespace),
        _get(client, SECRETS, namespace),
        *(_get(client, kind, "") for kind in KINDS),
    )
    return facts_of(
        deployment,
        secret,
        {kind.kind: found for kind, found in zip(KINDS, configurations, strict=True)},
        datetime.datetime.now(datetime.UTC),
    )


def facts_of(
    deployment: KubeObject | str | None,
    secret: KubeObject | str | None,
    configurations: Mapping[str, KubeObject | str | None],
    now: datetime.datetime,
) -> Document:
    """Each is what was found: an object, None, or why it can't be seen."""
    if deployment is None and not any(configurations.values()):
        return {"present": False}
    failing = []
    pods = ""
    if isinstance(deployment, dict):
        pods = progress(deployment).text
        if not int((deployment.get("status") or {}).get("readyReplicas") or 0):
            failing.append("no pod of it is ready, and the API server goes on without it")
    else:
        failing.append(deployment or f"there is no Deployment {NAME}: apply the component webhook again")
    files = certificates.files_of(secret) if isinstance(secret, dict) else {}
    for kind, found in configurations.items():
        if not isinstance(found, dict):
            failing.append(found or f"there is no {kind} {NAME}: apply the component webhook again")
            continue
        bundles = {str(h.get("clientConfig", {}).get("caBundle") or "") for h in found.get("webhooks") or ()}
        if "" in bundles:
            failing.append(
                f"{kind} has no CA: a pod of the webhook writes it within a minute; its log says more"
            )
        elif files and {_decoded(bundle) for bundle in bundles} != {files.get(certificates.AUTHORITIES)}:
            failing.append(
                f"{kind} has another CA than the Secret {NAME}: its pods put that right within a minute"
            )
    end = certificates.end_of(files[certificates.CERTIFICATE]) if certificates.CERTIFICATE in files else None
    if end is not None and end < now:
        failing.append(
            f"its certificate has ended at {end:%Y-%m-%d %H:%M} UTC: delete the Secret's data, it is made anew"
        )
    return {
        "present": True,
        "pods": pods,
        "certificate_end": end.isoformat() if end is not None else "",
        "failing": failing,
    }


def picture(facts: Document) -> str:
    if not facts["present"]:
        return "\nWebhook: not installed (galaxy install --component webhook)"
    end = f", certificate until {facts['certificate_end'][:10]}" if facts["certificate_end"] else ""
    lines = [f"\nWebhook: {facts['pods'] or 'no pods'}{end}, {'failing' if facts['failing'] else 'trusted'}"]
    return "\n".join([*lines, *(f"  {why}" for why in facts["failing"])])


async def _get(client: Client, kind: Kind, namespace: str) -> KubeObject | str | None:
    try:
        return await client.get(kind, namespace, NAME)
    except NotFound:
        return None
    except KubeError as error:
        return f"{kind.kind} {NAME} can't be seen: {error}"


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""
