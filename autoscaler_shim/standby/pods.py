"""Standby pods as the API server has them, whoever's they are by now, and writes to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kserve_ext.api.standby import names, reading
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.known import Known, StandbyPod
from kserve_ext.kube.client import JSON_PATCH, Client, Conflict, Invalid, KubeObject, NotFound
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import PODS


class StandbyPods:
    def __init__(
        self,
        client: Client,
        known: Known,
        changed: Callable[[set[RevisionKey]], None],
        pool_changed: Callable[[str], None],
    ) -> None:
        self._client = client
        self._known = known
        self._changed = changed
        self._pool_changed = pool_changed
        self.informer = Informer(
            client, PODS, labels=names.POOL_LABEL, on_change=self._take, keep=reading.slim
        )

    def get(self, uid: str) -> KubeObject | None:
        """Slim."""
        pod = self._known.pods.get(uid)
        if pod is None:
            return None
        namespace, _, name = pod.name.partition("/")
        found = self.informer.get(namespace, name)
        return found if found is not None and found["metadata"]["uid"] == uid else None

    async def patch(self, uid: str, patch: dict[str, Any] | list[dict[str, Any]]) -> bool:
        """A merge patch, or a list of JSON patches with their tests.

        False: it is another one, or gone; the informer will tell. Raises KubeError where the server is away.
        """
        pod = self._known.pods.get(uid)
        if pod is None:
            return False
        namespace, _, name = pod.name.partition("/")
        try:
            if isinstance(patch, list):
                await self._client.patch(PODS, namespace, name, patch, content_type=JSON_PATCH)
            else:
                await self._client.patch(PODS, namespace, name, patch)
        except (Conflict, NotFound):
            return False
        except Invalid:  # so is answered, too, where a test fails
            if isinstance(patch, list):
                return False
            raise
        return True

    async def delete(self, uid: str) -> None:
        """It counts as leaving at once: nobody takes it meanwhile, and it isn't deleted twice. Raises KubeError where
        the server is away; then it stays, as where this is cancelled before there is an answer."""
        pod = self._known.pods.get(uid)
        if pod is None or pod.leaving:
            return
        leaving = pod._replace(leaving=True)
        self._set(uid, leaving)
        namespace, _, name = pod.name.partition("/")
        try:
            await self._client.delete(PODS, namespace, name, uid=uid)
        except (Conflict, NotFound):
            return
        except BaseException:
            if self._known.pods.get(uid) is leaving:
                self._set(uid, pod)
            raise

    def _take(self, old: KubeObject | None, new: KubeObject | None) -> None:
        """An informer tells a namesake as deleted and added, so that one change is about one pod."""
        uid = str((new or old or {})["metadata"]["uid"])
        self._set(uid, reading.fact(new) if new is not None else None)

    def _set(self, uid: str, after: StandbyPod | None) -> None:
        before = self._known.pods.get(uid)
        if before == after:
            return
        self._changed(self._known.pod(uid, after))
        for pool in {one.pool for one in (before, after) if one is not None}:
            self._pool_changed(pool)
