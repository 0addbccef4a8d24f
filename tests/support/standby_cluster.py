"""An autoscaler with standby pods on loopback: a fake API server, a real node agent, slots that are a socket and a
script, and what Kubernetes does with Deployments and pods as far as adoption depends on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from autoscaler_shim.knative.autoscaler import Autoscaler
from autoscaler_shim.node_agent.agent import NodeAgent
from kserve_ext.api.standby import names
from kserve_ext.kube.kinds import (
    ADMISSION_POLICIES,
    ADMISSION_POLICY_BINDINGS,
    DEPLOYMENTS,
    ENDPOINTS,
    PODS,
    REPLICA_SETS,
    Kind,
)
from kserve_ext.wire.slot_socket import Start
from tests.api.standby.deployments import deployment
from tests.support.api_objects import Change, Obj, Refused
from tests.support.api_server import ApiServer
from tests.support.knative_autoscaler import (
    NAMESPACE,
    SYSTEM,
    Activator,
    activator,
    autoscaler,
    put_revision,
    put_sks,
    run,
    state,
    status,
    until,
)
from tests.support.standby import NODE, FakeActivator, FakeSlot, put_cluster
from tests.support.standby import settings as agent_settings

UID = "serving.knative.dev/revisionUID"
_POLICY = (ADMISSION_POLICIES, ADMISSION_POLICY_BINDINGS)


class Server(ApiServer):
    """With a ReplicaSet controller and a kubelet."""

    def __init__(self) -> None:
        super().__init__()
        self.socket = Path()
        self.slots: dict[str, FakeSlot] = {}  # by pod's name
        self.lags = False  # the Deployment controller: ReplicaSets don't hear of replicas
        self.quiet = False  # new slots do nothing by themselves
        self.kubelet = True  # pods come up
        self.made: list[str] = []  # pods that ReplicaSets made
        self.scaled: list[str] = []  # what was written of pods and Deployments, in order
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._due = False

    @property
    def policy(self) -> bool:
        """Pods can be held."""
        return all(self.get(kind, "", names.POLICY) for kind in _POLICY)

    @policy.setter
    def policy(self, wanted: bool) -> None:
        for kind in _POLICY:
            if wanted:
                self.put(kind, {"metadata": {"name": names.POLICY}, "spec": {}})
            elif self.get(kind, "", names.POLICY) is not None:
                self.remove(kind, "", names.POLICY)

    async def down(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().down()

    def _changed(self, kind: Kind, change: Change) -> None:
        super()._changed(kind, change)
        if kind.plural not in ("pods", "deployments"):
            return
        self._note(kind, change)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._control)

    def _note(self, kind: Kind, change: Change) -> None:
        if change.old is None or change.new is None or change.deleted:
            return
        if kind.plural == "deployments" and change.old["spec"]["replicas"] != change.new["spec"]["replicas"]:
            self.scaled.append(f"scale {change.new['spec']['replicas']}")
        had, has = (UID in (o["metadata"].get("labels") or {}) for o in (change.old, change.new))
        if kind.plural == "pods" and had != has:
            self.scaled.append("label" if has else "unlabel")

    def _control(self) -> None:
        self._due = False
        for made in list(self.objects.of(DEPLOYMENTS).values()):
            self._sync(made)
        for pod in list(self.objects.of(PODS).values()):
            metadata = pod["metadata"]
            if names.POOL_LABEL in (metadata.get("labels") or {}) and "status" not in pod and self.kubelet:
                self._come_up(pod)
        for name in self.slots.keys() - {name for _, name in self.objects.of(PODS)}:
            self._run(self.slots.pop(name).close())

    def _sync(self, made: Obj) -> None:
        """The ReplicaSet of one Deployment: adopts, makes, deletes; those that aren't ready first, then by cost."""
        metadata = made["metadata"]
        labels = metadata["labels"]
        uid = metadata["uid"]
        hashed = f"hash-of-{metadata['name']}"
        name = f"{metadata['name']}-{hashed}"
        before = self.get(REPLICA_SETS, NAMESPACE, name)
        if before is None or (before["spec"]["replicas"] != made["spec"]["replicas"] and not self.lags):
            owner = {"controller": True, "kind": "Deployment", "uid": uid}
            notes = {names.TEMPLATE_REVISION: metadata["annotations"][names.TEMPLATE_REVISION]}
            replica_set = {
                "metadata": {
                    "namespace": NAMESPACE,
                    "name": name,
                    "labels": {**labels, names.TEMPLATE_HASH: hashed},
                    "annotations": notes,
                    "ownerReferences": [owner],
                },
                "spec": {"replicas": made["spec"]["replicas"]},
            }
            before = self.put(REPLICA_SETS, replica_set)
        mine = self._claim(labels, hashed)
        if mine is None:
            return
        seen = {"observedGeneration": before["metadata"]["generation"], "replicas": len(mine)}
        self.put(REPLICA_SETS, {**before, "status": seen})
        selects = {UID: labels[UID], names.TEMPLATE_HASH: hashed}
        wanted = before["spec"]["replicas"]
        for _ in range(wanted - len(mine)):
            self.made.append(metadata["name"])
            self.put(
                PODS,
                {
                    "metadata": {
                        "namespace": NAMESPACE,
                        "name": f"{metadata['name']}-{next(self._numbers)}",
                        "labels": {**labels, **selects},
                        "ownerReferences": [{"controller": True, "kind": "ReplicaSet", "uid": hashed}],
                    },
                    "status": {"phase": "Pending", "conditions": []},
                },
            )
        mine.sort(key=_victim)
        for pod in mine[: max(0, len(mine) - wanted)]:
            if not (self.policy and names.ADOPTION in pod["metadata"]["labels"]):
                self.remove(PODS, NAMESPACE, pod["metadata"]["name"])

    def _claim(self, labels: Obj, hashed: str) -> list[Obj] | None:
        """None: one of them is held, and nothing more is done."""
        selects = {UID: labels[UID], names.TEMPLATE_HASH: hashed}
        mine, held = [], False
        for pod in list(self.objects.of(PODS).values()):
            has = pod["metadata"].get("labels") or {}
            if selects.items() <= has.items() and (pod.get("status") or {}).get("phase") != "Failed":
                if not pod["metadata"].get("ownerReferences"):
                    if self.policy and has.get(names.ADOPTION) == names.HELD:
                        held = True
                        continue
                    owner = {"controller": True, "kind": "ReplicaSet", "uid": hashed}
                    pod = {**pod, "metadata": {**pod["metadata"], "ownerReferences": [owner]}}
                    self.put(PODS, pod)
                mine.append(pod)
        return None if held else mine

    def _answer(self, request: web.Request, body: Any) -> tuple[int, Obj]:
        if self.policy and request.query.get("dryRun"):
            raise Refused(403, "Forbidden", f"ValidatingAdmissionPolicy '{names.POLICY}' denied request")
        return super()._answer(request, body)

    def _come_up(self, pod: Obj) -> None:
        metadata = pod["metadata"]
        self.put(PODS, {**pod, "status": _running()})
        slot = FakeSlot(self, self.socket, f"{NAMESPACE}/{metadata['name']}", metadata["uid"])
        slot.hello = msgspec.structs.replace(slot.hello, pool=metadata["labels"][names.POOL_LABEL])
        slot.hello = msgspec.structs.replace(slot.hello, level=_level(pod))
        slot.quiet = self.quiet
        self.slots[metadata["name"]] = slot
        self._run(slot.keep_dialling())

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- for tests

    def catch_up(self) -> None:
        self.lags = False
        self._control()

    def standby(self) -> list[Obj]:
        """Pods of pools that are nobody's."""
        return [pod for pod in self._pods() if UID not in pod["metadata"]["labels"]]

    def adopted(self) -> list[Obj]:
        return [pod for pod in self._pods() if UID in pod["metadata"]["labels"]]

    def plain(self) -> list[Obj]:
        found = self.objects.of(PODS).values()
        return [p for p in found if "ownerReferences" in p["metadata"] and p not in self.adopted()]

    def end(self, name: str) -> None:
        """A pod's process ends."""
        pod = self.objects.of(PODS)[NAMESPACE, name]
        self.put(PODS, {**pod, "status": {**_running(), "phase": "Failed", "conditions": []}})

    def _pods(self) -> list[Obj]:
        found = self.objects.of(PODS).values()
        return [pod for pod in found if names.POOL_LABEL in (pod["metadata"].get("labels") or {})]


def play(folder: Path, script: Callable[[World], Awaitable[None]]) -> None:
    async def test() -> None:
        async with World(Server(), folder) as world:
            await script(world)

    run(test())


class World:
    def __init__(self, api: Server, folder: Path) -> None:
        self.api = api
        self.folder = folder
        self.agent: NodeAgent
        self.activator = FakeActivator()
        self.autoscaler: Autoscaler
        self.reporter: Activator

    async def filled(self, count: int) -> None:
        """So many slots can be taken, as far as the autoscaler knows."""

        def full() -> bool:
            assert self.autoscaler.standby is not None
            known = self.autoscaler.standby.known
            return sum(len(at) for pool in known.pools() for at in known.free(pool).values()) == count

        await until(full)

    async def known(self, name: str) -> None:
        """The autoscaler has the revision."""
        await self.api.until(lambda: status(self.api, name).get("metricsServiceName"))

    async def start_agent(self) -> None:
        self.agent = NodeAgent(agent_settings(self.folder), self._client)
        await self.agent.start()
        while not self.agent.addr:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        port = int(self.agent.addr.rpartition(":")[2])
        self.api.put(
            PODS,
            {
                "metadata": {
                    "namespace": SYSTEM,
                    "name": f"node-agent-{port}",
                    "labels": {names.COMPONENT_LABEL: names.AGENT_COMPONENT},
                },
                "spec": {
                    "nodeName": NODE,
                    "containers": [{"ports": [{"name": names.AGENT_PORT_NAME, "containerPort": port}]}],
                },
                "status": {"podIP": "127.0.0.1", "startTime": f"2026-01-01T00:00:{port % 60:02}Z"},
            },
        )

    async def kill_agent(self) -> None:
        port = self.agent.addr.rpartition(":")[2]
        await self.agent.stop()
        self.api.remove(PODS, SYSTEM, f"node-agent-{port}")

    @contextlib.asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[Autoscaler]:
        """An autoscaler, for as long as it is used."""
        port = int(self.activator.addr.rpartition(":")[2])
        options = {"standby": True, "peer_port": port, **changes}
        async with autoscaler(self.api, **options) as made, activator(made.stat_server.port) as reporter:
            self.autoscaler, self.reporter = made, reporter
            yield made

    @contextlib.asynccontextmanager
    async def standing_by(
        self, *revisions: str, size: int = 1, holds: bool = False
    ) -> AsyncIterator[Autoscaler]:
        """An autoscaler that has these revisions, and for all of them a pool of so many pods, which can be taken.

        `holds`: and knows that it can hold them.
        """
        if holds:
            self.api.policy = True
        for name in revisions:
            self.revision(name, standby=str(size))
        async with self.running() as made:
            await self.filled(size)
            if holds:
                await self.can_hold()
            yield made

    async def can_hold(self) -> None:
        await until(lambda: self.autoscaler.standby and self.autoscaler.standby.settling.can_hold)

    def taken(self) -> list[FakeSlot]:
        return [slot for slot in self.api.slots.values() if any(isinstance(o, Start) for o in slot.orders)]

    async def begun(self, name: str) -> FakeSlot:
        """The one slot that a request has been given, when the autoscaler has heard that it starts."""
        await self.reporter.report(1.0, name=name)
        await until(self.taken)
        (slot,) = self.taken()
        slot.say("starting", f"{NAMESPACE}/{name}")
        await until(lambda: self.autoscaler.standby and self.autoscaler.standby.known.starting)
        return slot

    def revision(self, name: str, replicas: int = 0, window: str = "60s", **changes: Any) -> None:
        """At zero, and ready to be woken."""
        notes = {"autoscaling.knative.dev/window": window}
        pa = put_revision(self.api, replicas, notes, state("False"), name=name)
        uid = self.api.get(DEPLOYMENTS, NAMESPACE, f"{name}-deployment")
        assert uid is not None
        made = deployment(name, **changes)
        made["spec"]["replicas"] = replicas
        self.api.put(DEPLOYMENTS, made)
        put_sks(self.api, pa)

    def annotate(self, name: str, **notes: str | None) -> None:
        made = self.api.get(DEPLOYMENTS, NAMESPACE, f"{name}-deployment")
        assert made is not None
        annotations = dict(made["metadata"]["annotations"])
        for key, value in notes.items():
            annotations.pop(f"kserve-galaxy.io/{key}", None)
            if value is not None:
                annotations[f"kserve-galaxy.io/{key}"] = value
        self.api.put(DEPLOYMENTS, {**made, "metadata": {**made["metadata"], "annotations": annotations}})

    async def __aenter__(self) -> World:
        await self.api.up()
        put_cluster(self.api)
        self._client = self.api.client()
        self.api.socket = self.folder / "agent.sock"
        await self.activator.start()
        host = self.activator.addr.rpartition(":")[0]
        subsets = [{"addresses": [{"ip": host}], "ports": [{"port": 8012}]}]
        self.api.put(
            ENDPOINTS, {"metadata": {"namespace": SYSTEM, "name": "activator-service"}, "subsets": subsets}
        )
        await self.start_agent()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.agent.stop()
        await self.activator.rpc.close()
        await self._client.close()
        await self.api.down()


def _level(pod: Obj) -> Any:
    env = pod["spec"]["containers"][0].get("env") or ()
    return next((entry["value"] for entry in env if entry["name"] == names.ENV_LEVEL), "S0")


def _running() -> Obj:
    ready = [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]
    return {"phase": "Running", "podIP": "10.0.0.7", "conditions": ready}


def _victim(pod: Obj) -> tuple[bool, int]:
    ready = (pod.get("status") or {}).get("phase") == "Running"
    cost = int((pod["metadata"].get("annotations") or {}).get(names.DELETION_COST, 0))
    return ready, cost
