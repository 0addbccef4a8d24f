"""What `galaxy status` says of a Kubernetes cluster: which parts of Knative are ours, and how they are."""

from __future__ import annotations

import os
from typing import Any

from kserve_ext.cli.knative.parts import PARTS, image_of, is_ours, mutual_tls_of, release_of
from kserve_ext.cli.knative.preflight import Situation
from kserve_ext.cli.knative.preflight import look as look_at
from kserve_ext.cli.knative.rollout import progress
from kserve_ext.cli.knative.session import reach, run
from kserve_ext.cli.output import table
from kserve_ext.kube.access import AccessError

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
    return facts_of(run(context, lambda client: look_at(client, namespace)))


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
    return "\n".join(lines)
