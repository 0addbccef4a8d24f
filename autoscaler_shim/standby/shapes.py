"""What revisions wish for, read from their Deployments: which pool fits, which labels they need, or why none fits.

Read once for each state of a Deployment's template; the hash that its ReplicaSet gave its pods is asked for ahead, so
that nobody waits for it behind a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from kserve_ext.api.knative.conditions import text_map
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.api.standby import fitting, names, pods, reading
from kserve_ext.api.standby.fitting import Unfit, Wish
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import Level
from kserve_ext.kube.client import Client, KubeError, KubeObject
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import REPLICA_SETS

log = logging.getLogger(__name__)

HASH_AGAIN_S: Final = 0.5
#: How long a ReplicaSet's controller is waited for, and the pauses between looks.
ROOM_S: Final = 5.0
LOOKS_S: Final = (0.01, 0.2)
LOWER: Final[Mapping[Level, tuple[Level, ...]]] = {"S2": ("S1", "S0"), "S1": ("S0",), "S0": ()}
_KEPT: Final = ("name", "namespace", "uid", "resourceVersion", "generation", "labels", "annotations")


def slim(deployment: KubeObject) -> KubeObject:
    """What is kept of a Deployment in memory: its template only where it wishes for standby pods."""
    metadata, spec = deployment["metadata"], deployment.get("spec") or {}
    kept = {"replicas": spec.get("replicas", 1)}
    if fitting.asks(deployment):
        kept["template"] = spec.get("template")
        kept["progressDeadlineSeconds"] = spec.get("progressDeadlineSeconds")
        return {"metadata": {key: metadata[key] for key in _KEPT if key in metadata}, "spec": kept}
    return {"metadata": {key: metadata[key] for key in _KEPT[:-1] if key in metadata}, "spec": kept}


class Shape(NamedTuple):
    """Of one revision."""

    revision: RevisionKey
    wish: Wish | None
    pool: pods.Pool | None
    unfit: str
    start_s: float
    model: str
    lesser: tuple[str, ...] = ()  # pools of lower levels that fit as well, the best first

    @property
    def engine(self) -> str:
        """The one that serves it, of those that sleep in pods of level S2."""
        return self.wish.engine if self.wish is not None else ""


class Shapes:
    def __init__(self, client: Client, deployments: Informer, hashed: Callable[[RevisionKey], None]) -> None:
        """`hashed`: the labels of this revision's pods have come to be known."""
        self._client = client
        self._deployments = deployments
        self._hashed = hashed
        #: By revision; with the Deployment that it was read from.
        self._read: dict[RevisionKey, tuple[KubeObject, Shape]] = {}
        self._of_pool: dict[str, set[RevisionKey]] = {}
        #: Labels and names of ReplicaSets, by the Deployment's uid and its template's revision.
        self._hashes: dict[tuple[str, str], tuple[str, str]] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def stop(self) -> None:
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    def take(self, old: KubeObject | None, new: KubeObject | None) -> tuple[str, ...]:
        """A Deployment has changed; the pools that this concerns."""
        known = new or old
        assert known is not None
        revision = _revision(known)
        before = self._read.get(revision)
        if new is None or not fitting.asks(new):
            if before is not None:
                del self._read[revision]
        elif before is None or not _alike(before[0], new):
            shape = _shape(revision, new)
            self._read[revision] = new, shape
        else:
            self._read[revision] = new, before[1]
        after = self._read.get(revision)
        self._index(before[1] if before else None, after[1] if after else None)
        if after is not None and after[1].pool is not None:
            self.template_hash(revision)
        if new is None:  # what was found out of its ReplicaSets
            uid = known["metadata"].get("uid")
            self._hashes = {key: found for key, found in self._hashes.items() if key[0] != uid}
        found = {entry[1].pool.key for entry in (before, after) if entry and entry[1].pool}
        return tuple(sorted(found)) if before is None or after is None or before[1] is not after[1] else ()

    def of(self, revision: RevisionKey) -> Shape | None:
        found = self._read.get(revision)
        return found[1] if found else None

    def all(self) -> list[Shape]:
        return [shape for _, shape in self._read.values()]

    def pools(self) -> list[str]:
        return list(self._of_pool)

    def of_pool(self, pool: str) -> list[Shape]:
        return [self._read[revision][1] for revision in self._of_pool.get(pool, ())]

    def template_hash(self, revision: RevisionKey) -> str:
        """ "" = not known yet; `hashed` tells."""
        found = self._read.get(revision)
        if found is None:
            return ""
        deployment = found[0]
        key = _template_of(deployment)
        if not key[1]:
            return ""  # its controller hasn't seen it yet
        known = self._hashes.get(key, ("", ""))[0]
        if not known and key not in self._asking:
            task = asyncio.create_task(self._ask(revision, key), name=f"template hash of {revision}")
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return known

    async def room(self, revision: RevisionKey, pods: int) -> bool:
        """Waits until the controller of its ReplicaSet has seen that there are to be so many pods.

        The Deployment says so before the ReplicaSet does, and that before its controller knows; a pod that gets its
        labels before would be one too many, and deleted. Raises KubeError.
        """
        found = self._read.get(revision)
        _, name = self._hashes.get(_template_of(found[0]), ("", "")) if found is not None else ("", "")
        if not name:
            return False
        loop = asyncio.get_running_loop()
        deadline, pause_s = loop.time() + ROOM_S, LOOKS_S[0]
        while True:
            replica_set = await self._client.get(REPLICA_SETS, revision.partition("/")[0], name)
            if reading.has_room(replica_set, pods):
                return True
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOKS_S[1])

    def _index(self, before: Shape | None, after: Shape | None) -> None:
        if before is not None and before.pool is not None:
            of = self._of_pool[before.pool.key]
            of.discard(before.revision)
            if not of:
                del self._of_pool[before.pool.key]
        if after is not None and after.pool is not None:
            self._of_pool.setdefault(after.pool.key, set()).add(after.revision)

    async def _ask(self, revision: RevisionKey, key: tuple[str, str]) -> None:
        """Until it is known, or another template is the present one."""
        while (found := self._read.get(revision)) is not None and _template_of(found[0]) == key:
            metadata = found[0]["metadata"]
            labels = text_map(metadata.get("labels"))
            selector = f"{REVISION_LABEL}={labels.get(REVISION_LABEL, '')}"
            try:
                listed = await self._client.list(REPLICA_SETS, metadata["namespace"], labels=selector)
                replica_set = reading.replica_set(found[0], listed.items)
            except KubeError as error:
                log.warning("%s: its ReplicaSet can't be read, so it gets no labels yet: %s", revision, error)
                replica_set = None
            if replica_set is not None:
                theirs = replica_set["metadata"]
                known = text_map(theirs.get("labels")).get(names.TEMPLATE_HASH, "")
                self._hashes[key] = known, str(theirs["name"])
                self._hashed(revision)
                return
            await asyncio.sleep(HASH_AGAIN_S)


def _shape(revision: RevisionKey, deployment: KubeObject) -> Shape:
    start_s = float((deployment["spec"].get("progressDeadlineSeconds")) or 600)
    read = fitting.read(deployment)
    if isinstance(read, Wish):
        model = read.annotations.get(fitting.SOURCE, "")
        below = LOWER[read.level]
        lesser = tuple(pods.pool(replace(read, level=level)).key for level in below)
        return Shape(revision, read, pods.pool(read), "", start_s, model, lesser)
    unfit = read.reason if isinstance(read, Unfit) else ""
    return Shape(revision, None, None, unfit, start_s, "")


def _revision(deployment: KubeObject) -> RevisionKey:
    metadata = deployment["metadata"]
    return RevisionKey(f"{metadata['namespace']}/{text_map(metadata.get('labels'))[REVISION_LABEL]}")


def _template_of(deployment: KubeObject) -> tuple[str, str]:
    metadata = deployment["metadata"]
    present = text_map(metadata.get("annotations")).get(names.TEMPLATE_REVISION, "")
    return str(metadata.get("uid")), present


def _alike(one: KubeObject, other: KubeObject) -> bool:
    return (
        one["metadata"]["uid"] == other["metadata"]["uid"]
        and text_map(one["metadata"].get("annotations")) == text_map(other["metadata"].get("annotations"))
        and one["spec"].get("template") == other["spec"].get("template")
    )
