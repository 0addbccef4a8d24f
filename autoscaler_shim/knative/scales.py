"""Writes the number of replicas into what a PodAutoscaler scales: the one write that nobody waits in line for.

As pkg/reconciler/autoscaling/kpa/scaler.go: the field spec.replicas of the target itself, by a patch, and only
where it is another number (a target without the field has one replica). What was written counts until the copy here
has come as far. Of a burst of revisions at zero, a few are woken at a time (core/knative/waves.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from kserve_ext.api.knative.conditions import Document
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.core.knative.waves import Waves
from kserve_ext.kube.client import Client, KubeError
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
        "status": {"replicas": (deployment.get("status") or {}).get("replicas", 0)},
    }


def kind_of(reference: Document) -> Kind:
    """By Knative's rule for plurals; the API server is not asked."""
    group, _, version = str(reference.get("apiVersion") or "").rpartition("/")
    kind = str(reference.get("kind") or "")
    singular = kind.lower()
    return Kind(group, version, singular + ("es" if singular.endswith("s") else "s"), kind)


class Scales:
    def __init__(
        self,
        client: Client,
        deployments: Informer,
        again: Callable[[str], None],
        may: Callable[[str], bool],
    ) -> None:
        """`again` hears of the PodAutoscalers whose turn it is; `may`: whether this one is (still) ours to scale."""
        self._client = client
        self._deployments = deployments
        self._again = again
        self._may = may
        self._waves: Waves[str] = Waves()
        self._timer: asyncio.TimerHandle | None = None
        #: by target: the replicas written, and the version that came back
        self._written: dict[tuple[str, str], tuple[int, int]] = {}
        self.patches = 0

    async def apply(self, key: str, pa: Document, scale: int) -> bool:
        """False: not now, since it is in line for its turn, to be told by `again`, or not ours. Raises KubeError."""
        reference = (pa.get("spec") or {}).get("scaleTargetRef") or {}
        namespace, name = pa["metadata"]["namespace"], str(reference.get("name") or "")
        kind = kind_of(reference)
        try:
            current = await self._current(kind, namespace, name)
        except KubeError:
            self.withdraw(key)  # what can't be woken holds up nobody
            raise
        if not self._may(key):
            self.withdraw(key)
            return False
        if current == 0 and scale > 0 and kind == DEPLOYMENTS:
            if not self._waves.enter(key, time.monotonic()):
                self._watch()
                return False
        else:
            self.withdraw(key)
        if current == scale:
            return True
        self.patches += 1
        written = await self._client.patch(kind, namespace, name, {"spec": {"replicas": scale}})
        if kind == DEPLOYMENTS:
            self._written[namespace, name] = scale, int(written["metadata"]["resourceVersion"])
        return True

    def withdraw(self, key: str) -> None:
        """It is not to be woken (any more)."""
        self._waves.withdraw(key)
        self._call()

    def observed(self, key: str, deployment: Document | None) -> None:
        """The Deployment of this PodAutoscaler has changed, or is gone."""
        if deployment is None or deployment["status"]["replicas"] > 0:
            self.release(key)

    def release(self, key: str) -> None:
        """Neither in line nor under way from now on."""
        self._waves.leave(key)
        self._call()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _call(self) -> None:
        for key in self._waves.free(time.monotonic()):
            self._again(key)
        self._watch()

    def _watch(self) -> None:
        """Looks again when the next place gets free by time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._waves.next_at
        if at is not None:
            delay = max(0.0, at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._call)

    async def _current(self, kind: Kind, namespace: str, name: str) -> int:
        known = self._deployments.get(namespace, name) if kind == DEPLOYMENTS else None
        if known is None:
            known = await self._client.get(kind, namespace, name)
        scale, version = self._written.get((namespace, name), (0, 0))
        if kind == DEPLOYMENTS and version > int(known["metadata"]["resourceVersion"]):
            return scale
        self._written.pop((namespace, name), None)
        return int((known.get("spec") or {}).get("replicas", 1))
