"""Carries out an installation and takes it back, part by part, each waited for before the next is touched.

Knative's Deployments are changed by server-side apply under one manager's name, and put back by a strategic merge
patch that the record holds. Whatever step an installation is cut off at, running it again goes on, and uninstalling
takes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from kserve_ext.api.knative.revision import REVISION_LABEL
from kserve_ext.api.standby.names import POOL_LABEL
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.knative import record as records
from kserve_ext.cli.knative.kinds import kind_named, kind_of
from kserve_ext.cli.knative.kustomize import Identity
from kserve_ext.cli.knative.merging import without
from kserve_ext.cli.knative.parts import (
    MUTUAL_TLS,
    PARTS,
    Part,
    image_of,
    is_ours,
    mutual_tls_of,
    own_version,
)
from kserve_ext.cli.knative.plan import Plan
from kserve_ext.cli.knative.preflight import Situation
from kserve_ext.cli.knative.record import Record, Taken
from kserve_ext.cli.knative.rollout import complaints, progress
from kserve_ext.kube.client import Client, Conflict, KubeError, NotFound
from kserve_ext.kube.kinds import CONFIG_MAPS, DAEMON_SETS, DEPLOYMENTS, PODS, Kind

Object = dict[str, Any]
MANAGER: Final = "galaxy"
STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"
#: Seconds between looks at a roll-out, growing.
POLL_S: Final = (0.1, 0.2, 0.5, 1.0)


class Steps:
    """`say` prints a line that stays, `wait` shows what is waited for at the moment."""

    def __init__(
        self,
        client: Client,
        situation: Situation,
        wait_s: float,
        say: Callable[[str], None],
        wait: Callable[[str], None],
    ) -> None:
        self._client = client
        self._situation = situation
        self._namespace = situation.namespace
        self._wait_s = wait_s
        self._say = say
        self._wait = wait

    async def install(self, plan: Plan) -> None:
        if "strict" in (mutual_tls_of(patch, _part(name)) for name, patch in plan.patches.items()):
            await self._ended("off")
        former = self._situation.record or Record("", {})
        taken = dict(former.parts)
        for name, patch in plan.patches.items():
            deployment = self._situation.deployments[name]
            taken[name] = records.take(
                _part(name), deployment, patch, former.parts.get(name), plan.objects_of(name)
            )
        gone = {
            name: [key for key in before.objects if key not in taken[name].objects]
            for name, before in former.parts.items()
            if name in plan.patches
        }
        left = {
            name: each._replace(objects=(*each.objects, *gone.get(name, ()))) for name, each in taken.items()
        }
        await self._write(Record(own_version(), left))
        for name, patch in plan.patches.items():
            for obj in plan.added[name]:
                await self._add(obj)
            changed = await self._client.apply(DEPLOYMENTS, patch, MANAGER, force=True)
            await self._settled(name, changed, "galaxy uninstall puts it back")
            if gone.get(name):  # not before: the former pods work by them
                await self._end_standby(gone[name])
                await self._delete(gone[name])
                left[name] = taken[name]
                await self._write(Record(own_version(), left))

    async def uninstall(self, record: Record, parts: tuple[Part, ...]) -> None:
        left = dict(record.parts)
        if any(part.name in left for part in parts):
            await self._relax()
        for part in reversed(parts):
            taken = left.get(part.name)
            if taken is None:
                continue
            await self._put_back(part, taken)
            await self._end_standby(taken.objects)
            await self._delete(list(reversed(taken.objects)))
            del left[part.name]
            await self._write(Record(record.version, left))

    # --- inside

    async def _add(self, obj: Object) -> None:
        kind = kind_of(obj)
        try:
            made = await self._client.apply(kind, obj, MANAGER, force=True)
        except NotFound as error:
            raise Failure(
                f"this cluster knows no {obj['kind']} of {obj['apiVersion']}",
                str(error),
                "install what brings that kind, or leave out the component",
            ) from None
        if kind in (DEPLOYMENTS, DAEMON_SETS):
            await self._settled(obj["metadata"]["name"], made, "galaxy uninstall takes it out", kind)

    async def _relax(self) -> None:
        """Ours speak without TLS, too, before Knative's come, who know none."""
        strict = [
            part
            for part in PARTS
            if mutual_tls_of(self._situation.deployments.get(part.name, {}), part) == "strict"
        ]
        for part in strict:
            self._say(f"deployment/{part.name}: mutual TLS becomes permissive, since Knative's know none")
            container = {"name": part.name, "env": [{"name": MUTUAL_TLS, "value": "permissive"}]}
            changed = await self._client.patch(
                DEPLOYMENTS,
                self._namespace,
                part.name,
                {"spec": {"template": {"spec": {"containers": [container]}}}},
                content_type=STRATEGIC_MERGE,
                params={"fieldManager": MANAGER},
            )
            await self._settled(part.name, changed, "galaxy uninstall goes on from here")
        await self._ended("strict")

    async def _ended(self, mode: str) -> None:
        """Waits for pods of that mode to end: while they drain they hold requests, and have to be heard."""
        until = time.monotonic() + self._wait_s
        for pause_s in itertools.chain(POLL_S, itertools.repeat(POLL_S[-1])):
            try:
                listed = [(p, await self._client.list(PODS, self._namespace, f"app={p.name}")) for p in PARTS]
            except KubeError as error:
                if error.status != 403:
                    raise
                return  # who may change Deployments need not be allowed to see pods
            left = [
                str(pod["metadata"]["name"])
                for part, pods in listed
                for pod in pods.items
                if mutual_tls_of({"spec": {"template": pod}}, part) == mode
            ]
            if not left:
                return
            if time.monotonic() >= until:
                raise Failure(
                    f"pods with mutual TLS {mode} are still there after {self._wait_s:g} s",
                    "\n".join(left),
                    "let their requests end, or delete them, and repeat the command: it goes on",
                )
            self._wait(f"pods with mutual TLS {mode} end: {', '.join(left)}")
            await asyncio.sleep(pause_s)

    async def _put_back(self, part: Part, taken: Taken) -> None:
        deployment = self._situation.deployments.get(part.name)
        if deployment is None:
            self._say(f"deployment/{part.name} is gone, nothing to put back")
            return
        back, image = taken.undo, image_of(deployment, part)
        if not is_ours(image, part) and image != taken.former_image:
            self._say(f"deployment/{part.name} runs {image} meanwhile, which stays")
            back = without(back, "image")
        changed = await self._client.patch(
            DEPLOYMENTS,
            self._namespace,
            part.name,
            back,
            content_type=STRATEGIC_MERGE,
            params={"fieldManager": MANAGER},
        )
        await self._settled(
            part.name, changed, "the pods of ours go on serving; galaxy uninstall goes on from here"
        )

    async def _end_standby(self, going: Iterable[tuple[str, Identity]]) -> None:
        """Where the agents go: pods that no revision has adopted. The others go with their revisions.

        To be called once no autoscaler makes them any more.
        """
        if not any(key.kind == DAEMON_SETS.kind for _, key in going):
            return
        try:
            listed = await self._client.list(PODS, labels=f"{POOL_LABEL},!{REVISION_LABEL}")
        except KubeError as error:
            if error.status != 403:
                raise
            self._say(
                f"standby pods stay, as they can't be listed ({error}): kubectl delete pods -A -l {POOL_LABEL}"
            )
            return
        for pod in listed.items:
            metadata = pod["metadata"]
            with contextlib.suppress(NotFound, Conflict):
                await self._client.delete(PODS, metadata["namespace"], metadata["name"], uid=metadata["uid"])
                self._say(f"standby pod {metadata['namespace']}/{metadata['name']} deleted")

    async def _settled(self, name: str, deployment: Object, do: str, kind: Kind = DEPLOYMENTS) -> None:
        """Waits until it has rolled out; Failure with what its pods say if it does not."""
        what = f"{kind.kind.lower()}/{name}"
        former = self._situation.deployments.get(name)
        unchanged = former is not None and _generation(deployment) == _generation(former)
        until = time.monotonic() + self._wait_s
        for pause_s in itertools.chain(POLL_S, itertools.repeat(POLL_S[-1])):
            now = progress(deployment)
            if now.done:
                self._say(f"{what} {'unchanged' if unchanged else 'rolled out'}, {now.text}")
                return
            late = time.monotonic() >= until
            if now.failed or late:
                how = "has failed" if now.failed else f"is not done after {self._wait_s:g} s"
                why = "\n".join([now.text, *await self._complaints(name)])
                raise Failure(f"the roll-out of {what} {how}", why, f"the former pods serve; {do}")
            self._wait(f"{what}: {now.text}")
            await asyncio.sleep(pause_s)
            deployment = await self._client.get(kind, self._namespace, name)

    async def _complaints(self, name: str) -> list[str]:
        try:
            pods = await self._client.list(PODS, self._namespace, labels=f"app={name}")
        except KubeError as error:  # who may change Deployments need not be allowed to see pods
            return [f"its pods can't be listed: {error}"]
        return complaints(pods.items)

    async def _delete(self, objects: list[tuple[str, Any]]) -> None:
        for api_version, key in objects:
            with contextlib.suppress(NotFound):
                await self._client.delete(kind_named(api_version, key.kind), key.namespace, key.name)
                self._say(f"{key} deleted")

    async def _write(self, record: Record) -> None:
        """The record goes with the last part."""
        if record.parts:
            await self._client.apply(
                CONFIG_MAPS, records.config_map(self._namespace, record), MANAGER, force=True
            )
        else:
            with contextlib.suppress(NotFound):
                await self._client.delete(CONFIG_MAPS, self._namespace, records.NAME)


def _generation(deployment: Object) -> object:
    return deployment["metadata"].get("generation")


def _part(name: str) -> Part:
    return next(part for part in PARTS if part.name == name)
