"""A pod with a revision's labels becomes its ReplicaSet's, which is neither to make another nor to delete this one.

The ReplicaSet's controller acts on copies of ReplicaSets and pods that come to it without an order between them. So a
pod gets its labels held, before replicas rise: the policy galaxy-standby-adoption (manifests/components/standby) lets
nobody take it, and a controller that can't take a pod with its labels makes and deletes none. Once the ReplicaSet has
the number, and its controller has had a moment to hear of it, the pod is let go, and guarded: should the controller
not have heard, it is refused to delete the pod, and tries again. When it says that it has heard, the label goes.
docs/decisions/0037 says what else was tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from autoscaler_shim.standby.pods import StandbyPods
from kserve_ext.api.knative.conditions import text_map
from kserve_ext.api.standby import assigning, names, reading
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.known import Known
from kserve_ext.kube.client import Client, KubeError, KubeObject, NotFound
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import (
    ADMISSION_POLICIES,
    ADMISSION_POLICY_BINDINGS,
    DEPLOYMENTS,
    PODS,
    REPLICA_SETS,
)

log = logging.getLogger(__name__)

#: From the number in the ReplicaSet until its controller is believed to know it.
HEARD_S: Final = 0.3
#: So long the ReplicaSet is waited for at a time, and the pauses between looks.
WAIT_S: Final = 5.0
LOOKS_S: Final = (0.05, 0.5)
#: The policy has to be in force at all API servers: so many looks in a row found it so, and the last isn't older.
LOOKS: Final = 2
LOOK_OLD_S: Final = 30.0


class Settled(NamedTuple):
    done: bool  # else it is to be tried again
    astray: list[str]  # uids: held for a ReplicaSet of a former template; to be labelled anew


class Settling:
    def __init__(self, client: Client, known: Known, pods: StandbyPods) -> None:
        self._client = client
        self._known = known
        self._pods = pods
        self._found = 0  # so many times in a row
        self._found_at = 0.0
        self._said: bool | None = None
        #: The policy and its binding. Looked for once it was in force; before, the cluster may know no such kinds.
        self._watched = [
            Informer(client, kind, fields=f"metadata.name={names.POLICY}", on_change=self._policy_changed)
            for kind in (ADMISSION_POLICIES, ADMISSION_POLICY_BINDINGS)
        ]

    @property
    def can_hold(self) -> bool:
        """Whether pods can be held now; else labels have to wait for the ReplicaSet."""
        if any(each.synced.is_set() and not each.objects for each in self._watched):
            return False
        fresh = asyncio.get_running_loop().time() - self._found_at < LOOK_OLD_S
        return self._found >= LOOKS and fresh

    async def begin(self) -> None:
        """Where there are standby pods already the policy isn't new: nobody has to wait for a next look."""
        for _ in range(LOOKS):
            await self.look()

    async def stop(self) -> None:
        for each in self._watched:
            await each.stop()

    async def look(self) -> None:
        """Whether the policy is in force: the API server is asked for what it must refuse. Now and then."""
        pods = [pod for pod in self._known.pods.values() if not (pod.leaving or pod.ended)]
        if not pods:
            return
        pod = min(pods, key=lambda pod: bool(pod.revision))  # in a burst all may be somebody's
        namespace, _, name = pod.name.partition("/")
        held = False
        try:
            await self._client.patch(PODS, namespace, name, assigning.stolen(), params={"dryRun": "All"})
        except NotFound:
            return
        except KubeError as error:
            if names.POLICY not in error.message:
                # Another rule of the cluster, or a server that has too much to do: that says nothing.
                log.info("whether policy %s is in force wasn't answered: %s", names.POLICY, error)
                return
            held = True
            for each in self._watched:
                each.start()
        self._found = self._found + 1 if held else 0
        self._found_at = asyncio.get_running_loop().time()
        if held != self._said:
            self._said = held
            if held:
                log.info("policy %s is in force: no plain pod is made while one is adopted", names.POLICY)
            else:
                log.info(
                    "policy %s is not in force (needs Kubernetes 1.30): with each pod that is adopted its "
                    "ReplicaSet makes another, which is deleted at once",
                    names.POLICY,
                )

    async def settle(self, revision: RevisionKey, present: str, uids: Sequence[str]) -> Settled:
        """`present`: the hash of its present template. Raises KubeError."""
        of: dict[str, list[str]] = {}
        for uid in uids:
            if (pod := self._pods.get(uid)) is not None:
                labels = text_map(pod["metadata"].get("labels"))
                of.setdefault(labels.get(names.TEMPLATE_HASH, present), []).append(uid)
        namespace, _, name = revision.partition("/")
        done, astray = True, []
        for template_hash, mine in of.items():
            held = [uid for uid in mine if not self._is_guarded(uid)]
            if present and template_hash != present:  # that was changed: its ReplicaSet shrinks, or is gone
                astray += held
                mine = [uid for uid in mine if uid not in held]
                held = []
            done &= await self._settle(namespace, f"{name}-deployment", template_hash, mine, held)
        return Settled(done, astray)

    # --- inside

    def _policy_changed(self, old: KubeObject | None, new: KubeObject | None) -> None:
        """Gone, or another one: what the looks found is true no more. A look may be under way, so one more is."""
        if old is not None and (new is None or old.get("spec") != new.get("spec")):
            log.info("%s %s %s", old.get("kind"), names.POLICY, "is gone" if new is None else "was changed")
            self._found = 0

    async def _settle(
        self, namespace: str, deployment: str, template_hash: str, uids: list[str], held: list[str]
    ) -> bool:
        replica_set = f"{deployment}-{template_hash}"  # so Deployments call them
        if held and not await self._has_place(namespace, deployment, replica_set, len(held)):
            return False
        await asyncio.gather(*(self._pods.patch(uid, assigning.guarded(uid)) for uid in held))
        if not await self._is_known(namespace, replica_set, uids):
            return False
        await asyncio.gather(*(self._pods.patch(uid, assigning.settled(uid)) for uid in uids))
        return True

    def _is_guarded(self, uid: str) -> bool:
        pod = self._known.pods.get(uid)
        return pod is not None and pod.moving and not pod.held

    async def _has_place(self, namespace: str, deployment: str, replica_set: str, count: int) -> bool:
        async for found in self._looks(namespace, replica_set):
            if found is None:
                return False
            if reading.takes(found, count):
                await asyncio.sleep(HEARD_S)
                return True
        # It may be meant to shrink: a rollout, or another scale. Then it isn't held up any longer.
        return reading.has_seen(await self._client.get(DEPLOYMENTS, namespace, deployment))

    async def _is_known(self, namespace: str, replica_set: str, uids: list[str]) -> bool:
        async for found in self._looks(namespace, replica_set):
            if found is None:
                return True
            pods = [self._known.pods.get(uid) for uid in uids]
            if reading.has_seen(found) and all(
                pod is None or pod.owned or pod.leaving or pod.ended for pod in pods
            ):
                return True
        return False

    async def _looks(self, namespace: str, replica_set: str) -> AsyncIterator[KubeObject | None]:
        """The ReplicaSet, again and again for a time; None: there is none of this name."""
        loop = asyncio.get_running_loop()
        deadline, pause_s = loop.time() + WAIT_S, LOOKS_S[0]
        while loop.time() < deadline:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOKS_S[1])
            try:
                yield await self._client.get(REPLICA_SETS, namespace, replica_set)
            except NotFound:
                yield None
