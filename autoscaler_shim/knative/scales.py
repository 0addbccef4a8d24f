"""Writes the number of replicas into what a PodAutoscaler scales: the one write that nobody waits in line for.

As pkg/reconciler/autoscaling/kpa/scaler.go: the field spec.replicas of the target itself, by a patch, and only
where it is another number (a target without the field has one replica). What was written counts until the copy here
has come as far. Of a burst of revisions at zero, a few are woken at a time, and none shrinks (core/knative/waves.py).

The server is told which generation was decided upon, and refuses the patch if the spec has changed since: whoever
was stopped between the look at its Lease and the patch can't undo what its successor has written. (If that has found
nothing to change, the late patch is taken; it is seen as a change by the successor, who puts it right.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from kserve_ext.api.knative.conditions import Condition, Document
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.core.knative.waves import Waves
from kserve_ext.kube.client import JSON_PATCH, Client, Conflict, Invalid, KubeError
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import DEPLOYMENTS, Kind

log = logging.getLogger(__name__)

#: Deployments of revisions have it.
SELECTOR = REVISION_LABEL


def slim(deployment: Document) -> Document:
    """The part of a Deployment that is kept in memory."""
    metadata = deployment["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "generation", "labels")
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


def target_of(pa: Document) -> tuple[Kind, str, str]:
    """What a PodAutoscaler scales: kind, namespace, name."""
    reference = (pa.get("spec") or {}).get("scaleTargetRef") or {}
    return kind_of(reference), pa["metadata"]["namespace"], str(reference.get("name") or "")


class Scale(NamedTuple):
    """What a target asks for."""

    replicas: int
    #: of its spec; None: it doesn't count them
    generation: int | None
    version: int

    @classmethod
    def of(cls, target: Document) -> Scale:
        metadata = target["metadata"]
        replicas = (target.get("spec") or {}).get("replicas", 1)
        return cls(int(replicas), metadata.get("generation"), int(metadata["resourceVersion"]))


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
        #: by Deployment: what came back from writing, until its copy is as new
        self._written: dict[tuple[str, str], Scale] = {}
        self.patches = 0

    async def apply(self, key: str, pa: Document, scale: int) -> bool:
        """False: not now, since it is in line for its turn, to be told by `again`, or not ours. Raises KubeError."""
        kind, namespace, name = target_of(pa)
        try:
            current = await self._current(kind, namespace, name)
        except KubeError:
            self.withdraw(key)  # what can't be woken holds up nobody
            raise
        if not self._may(key):
            self.withdraw(key)
            return False
        if not self._turn(key, current.replicas, scale, kind):
            return False
        if current.replicas != scale:
            await self._write(kind, namespace, name, current, scale)
        return True

    def conditions(self, key: str, pa: Document) -> tuple[Condition, ...]:
        """What else is to be said in its status; none of it counts for Ready."""
        return ()

    def notes(self, key: str, pa: Document) -> tuple[tuple[str, str], ...]:
        """Annotations of its status."""
        return ()

    async def leave(self, key: str, pa: Document) -> None:
        """It is to stay as it is. Raises KubeError."""
        self.withdraw(key)

    def waking(self) -> bool:
        """So many revisions are being woken that the API server should be asked for nothing that can wait."""
        return self._waves.busy(time.monotonic())

    def at(self, key: str, pa: Document, scale: int) -> bool:
        """Whether it is known to have been asked for that many already."""
        kind, namespace, name = target_of(pa)
        current = self._asked_for(namespace, name) if kind == DEPLOYMENTS else None
        return current is not None and current.replicas == scale

    def keeps(self, key: str) -> bool:
        """Whether it has to wait before it shrinks; `again` hears of it in its turn."""
        kept = self._waves.keep(key, time.monotonic())
        self._call()
        return kept

    def shrinks_later(self, key: str) -> bool:
        """It was told to wait since it is to shrink: what else was decided of it needn't."""
        return self._waves.shrinks_later(key)

    def withdraw(self, key: str) -> None:
        """It is not to be scaled (any more)."""
        self._waves.withdraw(key)
        self._call()

    def made(self, key: str) -> None:
        """It has a pod."""
        self._waves.leave(key, time.monotonic())
        self._call()

    def release(self, key: str) -> None:
        """Neither in line nor under way from now on."""
        self._waves.leave(key, time.monotonic())
        self.withdraw(key)

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

    def _turn(self, key: str, current: int, scale: int, kind: Kind) -> bool:
        """Whether it may be scaled now; if not, it is in line."""
        if current == 0 and scale > 0 and kind == DEPLOYMENTS:
            turn = self._waves.enter(key, time.monotonic())
        elif scale < current:
            turn = self._waves.shrink(key, time.monotonic())
        else:
            self._waves.withdraw(key)
            turn = True
        self._call()
        return turn

    async def _write(self, kind: Kind, namespace: str, name: str, current: Scale, scale: int) -> None:
        self.patches += 1
        written = await self._patch(kind, namespace, name, current, scale)
        if kind == DEPLOYMENTS:
            self._written[namespace, name] = Scale.of(written)

    async def _patch(self, kind: Kind, namespace: str, name: str, current: Scale, scale: int) -> Document:
        # "add" sets a field, there or not
        patch = [{"op": "add", "path": "/spec/replicas", "value": scale}]
        if current.generation is not None:
            patch.insert(0, {"op": "test", "path": "/metadata/generation", "value": current.generation})
        try:
            return await self._client.patch(kind, namespace, name, patch, content_type=JSON_PATCH)
        except Invalid as error:  # so is answered, too, where the test fails
            log.info("%s/%s: scale %d: refused, looked at again: %s", namespace, name, scale, error)
            self._written.pop((namespace, name), None)
            raise Conflict(error.status, error.reason, error.message) from error

    async def _current(self, kind: Kind, namespace: str, name: str) -> Scale:
        known = self._asked_for(namespace, name) if kind == DEPLOYMENTS else None
        return known or Scale.of(await self._client.get(kind, namespace, name))

    def _asked_for(self, namespace: str, name: str) -> Scale | None:
        """What a Deployment asks for, as its copy or our own last write has it, whichever is later."""
        copy = self._deployments.get(namespace, name)
        current = None if copy is None else Scale.of(copy)
        written = self._written.get((namespace, name))
        if written is not None and current is not None and written.version > current.version:
            return written
        self._written.pop((namespace, name), None)
        return current
