"""Writes the number of replicas into what a PodAutoscaler scales: the one write that nobody waits in line for.

As pkg/reconciler/autoscaling/kpa/scaler.go: the field spec.replicas of the target itself, by a patch, and only
where it is another number (a target without the field has one replica). What was written counts until the copy here
has come as far.
"""

from __future__ import annotations

from kserve_ext.api.knative_conditions import Document
from kserve_ext.api.knative_pa import REVISION_LABEL
from kserve_ext.kube.client import Client
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import DEPLOYMENTS, Kind

#: Deployments of revisions have it.
SELECTOR = REVISION_LABEL


def slim(deployment: Document) -> Document:
    """The part of a Deployment that is kept in memory."""
    metadata = deployment["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "labels")
    return {
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "spec": {"replicas": (deployment.get("spec") or {}).get("replicas", 1)},
    }


def kind_of(reference: Document) -> Kind:
    """By Knative's rule for plurals; the API server is not asked."""
    group, _, version = str(reference.get("apiVersion") or "").rpartition("/")
    kind = str(reference.get("kind") or "")
    singular = kind.lower()
    return Kind(group, version, singular + ("es" if singular.endswith("s") else "s"), kind)


class Scales:
    def __init__(self, client: Client, deployments: Informer) -> None:
        self._client = client
        self._deployments = deployments
        #: by target: the replicas written, and the version that came back
        self._written: dict[tuple[str, str], tuple[int, int]] = {}
        self.patches = 0

    async def apply(self, pa: Document, scale: int) -> None:
        """Raises KubeError."""
        reference = (pa.get("spec") or {}).get("scaleTargetRef") or {}
        namespace, name = pa["metadata"]["namespace"], str(reference.get("name") or "")
        kind = kind_of(reference)
        if await self._current(kind, namespace, name) == scale:
            return
        self.patches += 1
        written = await self._client.patch(kind, namespace, name, {"spec": {"replicas": scale}})
        if kind == DEPLOYMENTS:
            self._written[namespace, name] = scale, int(written["metadata"]["resourceVersion"])

    async def _current(self, kind: Kind, namespace: str, name: str) -> int:
        known = self._deployments.get(namespace, name) if kind == DEPLOYMENTS else None
        if known is None:
            known = await self._client.get(kind, namespace, name)
        scale, version = self._written.get((namespace, name), (0, 0))
        if kind == DEPLOYMENTS and version > int(known["metadata"]["resourceVersion"]):
            return scale
        self._written.pop((namespace, name), None)
        return int((known.get("spec") or {}).get("replicas", 1))
