"""What `galaxy status` says of a Kubernetes cluster: which parts of Knative are ours, and how they are.

And what else of ours is there: standby pods with the agents of their nodes, and the webhook.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from kserve_ext.cli.knative import standby, webhook
from kserve_ext.cli.knative.parts import PARTS, image_of, is_ours, mutual_tls_of, release_of
from kserve_ext.cli.knative.preflight import Situation
from kserve_ext.cli.knative.preflight import look as look_at
from kserve_ext.cli.knative.rollout import progress
from kserve_ext.cli.knative.session import reach, run
from kserve_ext.cli.output import table
from kserve_ext.kube.access import AccessError
from kserve_ext.kube.client import Client

Document = dict[str, Any]


def is_configured() -> bool:
    """Whether there is a kubeconfig, or this is a pod. One that is named and of no use counts: it is to be said."""
    if os.environ.get("KUBECONFIG"):
        return True
    try:
        reach("")
    except AccessError:
        return False
    return True


def look(context: str, namespace: str) -> Document:
    async def everything(client: Client) -> Document:
        situation, pools, hook = await asyncio.gather(
            look_at(client, namespace), standby.look(client, namespace), webhook.look(client, namespace)
        )
        return {**facts_of(situation), "standby": pools, "webhook": hook}

    return run(context, everything)


def facts_of(situation: Situation) -> Document:
    recorded = situation.record.parts if situation.record else {}
    parts = []
    for part in reversed(PARTS):
        deployment = situation.deployments.get(part.name)
        if deployment is None:
            parts.append({"part": part.name, "whose": "absent"})
            continue
        image = image_of(deployment, part)
        taken = recorded.get(part.name)
        parts.append(
            {
                "part": part.name,
                "whose": "ours" if is_ours(image, part) else "Knative's",
                "release": release_of(deployment),
                "image": image,
                "mutual_tls": mutual_tls_of(deployment, part),
                "rollout": progress(deployment).text,
                "puts_back": taken.former_image if taken else "",
            }
        )
    return {"namespace": situation.namespace, "operators": situation.operators, "parts": parts}


def picture(facts: Document) -> str:
    columns = ("PART", "WHOSE", "KNATIVE", "IMAGE", "MUTUAL TLS", "PODS", "UNINSTALL PUTS BACK")
    fields = ("part", "whose", "release", "image", "mutual_tls", "rollout", "puts_back")
    rows = [[part.get(field, "") for field in fields] for part in facts["parts"]]
    lines = [f"Knative Serving in {facts['namespace']}", table(columns, rows)]
    if facts["operators"]:
        lines.append(f"managed by Knative's operator: KnativeServing {', '.join(facts['operators'])}")
    lines += [standby.picture(facts["standby"])] if "standby" in facts else []
    lines += [webhook.picture(facts["webhook"])] if "webhook" in facts else []
    return "\n".join(lines)
