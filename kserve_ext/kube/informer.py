"""A local copy of the objects of one kind, kept true by list and watch, and a call for each change.

Like client-go's reflector and shared informer: a cut watch is continued where it was, a history that is gone leads to
a new list, and what vanished in between is told as deleted, what was made anew under an old name as deleted and
added. While the server is away the copy stays as it was. Read its objects, never change them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

from kserve_ext.core.backoff import pause_s
from kserve_ext.kube.client import Client, Gone, KubeError, KubeObject, WatchEvent
from kserve_ext.kube.kinds import Kind

log = logging.getLogger(__name__)

#: (old, new): old is None for one that is new, new is None for one that is gone.
OnChange = Callable[[KubeObject | None, KubeObject | None], None]
Key = tuple[str, str]

BACKOFF_S = (0.2, 5.0)
#: A watch that ended sooner without an event is counted as a failure, or a broken proxy would make us spin.
SHORT_S = 1.0


class Informer:
    """start() and stop() belong to the loop that the client belongs to."""

    def __init__(
        self,
        client: Client,
        kind: Kind,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        on_change: OnChange | None = None,
        keep: Callable[[KubeObject], KubeObject] | None = None,
    ) -> None:
        """`keep`: what of each object is kept in memory; it must keep metadata's name, namespace, uid and version."""
        self.client = client
        self.kind = kind
        self.namespace = namespace
        self.labels = labels
        self.fields = fields
        self.keep = keep
        #: By (namespace, name); namespace is "" for kinds without.
        self.objects: dict[Key, KubeObject] = {}
        #: Set when the first list has been taken in and told.
        self.synced = asyncio.Event()
        #: Why there is no contact right now; "" while there is.
        self.problem = ""
        self._handlers: list[OnChange] = [on_change] if on_change else []
        self._task: asyncio.Task[None] | None = None
        self._version = ""
        #: Rounds in a row that ended without progress.
        self._failures = 0

    def get(self, namespace: str, name: str) -> KubeObject | None:
        return self.objects.get((namespace, name))

    def add_handler(self, on_change: OnChange) -> None:
        """Another one who hears of changes; what is there already it hears of at once, as new."""
        self._handlers.append(on_change)
        for obj in list(self.objects.values()):
            self._tell(on_change, None, obj)

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"informer {self.kind}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    # --- inside

    async def _run(self) -> None:
        while True:
            asked_to_wait_s = 0.0
            self._failures += 1
            listed = not self._version
            try:
                if listed:
                    await self._list()
                await self._follow()
            except Gone as gone:
                log.info("%s: history is gone, list again: %s", self.kind, gone.message)
                self._version = ""
                if not listed:  # else a server that calls every version gone would keep us listing
                    self._failures = 0
            except KubeError as error:
                self._complain(error)
                asked_to_wait_s = error.retry_after_s
            except Exception:  # an answer that isn't as it should be
                log.exception("%s: taking in the server's answer failed, list again", self.kind)
                self._version = ""
            if self._failures:
                pause = pause_s(self._failures, *BACKOFF_S, random.random())
                await asyncio.sleep(max(pause, asked_to_wait_s))

    async def _list(self) -> None:
        listed = await self.client.list(self.kind, self.namespace, self.labels, self.fields)
        found = {_key(obj): obj for obj in listed.items}
        for key in [key for key in self.objects if key not in found]:
            self._remove(key)
        for key, obj in found.items():
            self._put(key, obj)
        self._version = listed.resource_version
        self._well()
        self.synced.set()

    async def _follow(self) -> None:
        """Takes in one watch to its end."""
        begun = time.monotonic()
        watch = self.client.watch(
            self.kind, self.namespace, self.labels, self.fields, self._version, on_open=self._well
        )
        try:
            async with contextlib.aclosing(watch) as events:
                async for event in events:
                    self._failures = 0
                    self._take(event)
        finally:
            if time.monotonic() - begun >= SHORT_S:
                self._failures = 0

    def _take(self, event: WatchEvent) -> None:
        if event.type == "DELETED":
            self._remove(_key(event.object))
        elif event.type != "BOOKMARK":
            self._put(_key(event.object), event.object)
        self._version = event.object["metadata"]["resourceVersion"]

    def _put(self, key: Key, obj: KubeObject) -> None:
        old = self.objects.get(key)
        metadata = obj["metadata"]
        if old is not None:
            if old["metadata"]["resourceVersion"] == metadata["resourceVersion"]:
                return
            if old["metadata"].get("uid") != metadata.get("uid"):
                self._remove(key)
                old = None
        metadata.pop("managedFields", None)  # often the larger half of an object, and of use to nobody here
        new = self.keep(obj) if self.keep else obj
        self.objects[key] = new
        self._tell_all(old, new)

    def _remove(self, key: Key) -> None:
        old = self.objects.pop(key, None)
        if old is not None:
            self._tell_all(old, None)

    def _tell_all(self, old: KubeObject | None, new: KubeObject | None) -> None:
        for handler in self._handlers:
            self._tell(handler, old, new)

    def _tell(self, handler: OnChange, old: KubeObject | None, new: KubeObject | None) -> None:
        try:
            handler(old, new)
        except Exception:
            log.exception("%s: taking in a change of %s failed", self.kind, _key(new or old or {}))

    def _well(self) -> None:
        if self.problem:
            log.info("%s: in contact again", self.kind)
            self.problem = ""

    def _complain(self, error: KubeError) -> None:
        if str(error) != self.problem:
            self.problem = str(error)
            log.warning("%s: %s; keep %d objects and try again", self.kind, error, len(self.objects))


def _key(obj: KubeObject) -> Key:
    metadata = obj.get("metadata") or {}
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))
