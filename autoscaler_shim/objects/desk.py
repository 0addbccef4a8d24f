"""The one place through which objects change: applies, deletes, and looks at services that have news.

Keeps book, reconciler and store in step: every change is one batch of writes, in order. Runs on one event loop;
a service with news is looked at once, however much news there is. Decides nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import uuid
from collections.abc import Callable
from typing import Any, Final

import yaml

from autoscaler_shim.objects.book import Applied, Book, Document, ObjectKey, Refused
from autoscaler_shim.objects.reconciler import ISVC, Items, Reconciler, iso
from autoscaler_shim.objects.storage import Away, Storage
from kserve_ext.api import builtin
from kserve_ext.core.ids import RevisionKey

log = logging.getLogger(__name__)

#: Every service is looked at so often even without news; it heals what was missed.
RESYNC_S: Final = 30.0
Watcher = asyncio.Queue[tuple[str, Document]]


class Desk:
    """`clock` gives unix seconds that go on evenly, `rng` the uids."""

    def __init__(
        self, reconciler: Reconciler, storage: Storage, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self.reconciler = reconciler
        self.book: Book = reconciler.book
        self.storage = storage
        self.clock = clock
        self.rng = rng
        self._dirty: set[ObjectKey] = set()
        self._news = asyncio.Event()
        self._watchers: set[Watcher] = set()

    async def load(self) -> None:
        """Everything from the store; then the built-in runtimes, and a look at every service."""
        for _, value in await self.storage.scan("objects/"):
            document: Document = json.loads(value)
            try:
                self.book.restore(document)
            except (Refused, KeyError) as error:
                name = (document.get("metadata") or {}).get("name")
                log.error("object %s of an earlier release can't be read: %s", name, error)
        kept: list[tuple[str, bytes]] = []
        for prefix in ("rollouts/", "status/", "revisions/", "routes/"):
            kept += await self.storage.scan(prefix)
        orphans = self.reconciler.restore(kept, self.clock())
        items: Items = [(key, None) for key in orphans]
        for key, rollout in list(self.reconciler.rollouts.items()):
            if key not in self.book.documents and rollout.revisions:
                items += self.reconciler.delete(key)  # died between two writes
        for text in builtin.texts():
            document = yaml.safe_load(text)
            key = ObjectKey(document["kind"], "", document["metadata"]["name"])
            if key not in self.book.documents:
                self.book.apply(document, iso(self.clock()), self._uid())
                items.append(self._item(key))
        if items:
            await self.storage.write(items)
        self._mark(sorted(self.book.services))

    async def apply(self, document: object) -> Applied:
        """Admits one object and looks at what depends on it; durable when it returns. Refused, Away."""
        applied = self.book.apply(document, iso(self.clock()), self._uid())
        key = applied.key
        items: Items = []
        if applied.verb != "unchanged":
            items.append(self._item(key))
            self._tell("ADDED" if applied.verb == "created" else "MODIFIED", applied.document)
        items += self._look(key)
        self._mark(self.reconciler.related(key))
        await self.storage.write(items)
        return applied._replace(document=self.book.documents.get(key, applied.document))

    async def delete(self, key: ObjectKey) -> Document | None:
        """Idempotent: None when there is no such object."""
        related = self.reconciler.related(key)
        document = self.book.delete(key)
        if document is None:
            return None
        self._tell("DELETED", document)
        items: Items = self.reconciler.delete(key) if key.kind == ISVC else [(key.store_key, None)]
        self._mark(related)
        await self.storage.write(items)
        return document

    def watch(self) -> Watcher:
        """Events from now on; end with unwatch."""
        watcher: Watcher = asyncio.Queue()
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def status_changed(self, key: str, value: bytes | None) -> None:
        """From the watch of status/."""
        service = self.reconciler.observe(RevisionKey(key.partition("/")[2]), value)
        if service is not None:
            self._mark([service])

    def look_at_all(self) -> None:
        """What every service depends on has changed: the nodes."""
        self._mark(sorted(self.book.services))

    async def run(self) -> None:
        """Turns when there is news or something is due; runs until cancelled."""
        resync = self.clock() + RESYNC_S
        while True:
            due = min([resync, *self.reconciler.timers.values()])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, due - self.clock())):
                    await self._news.wait()
            self._news.clear()
            if self.clock() >= resync:
                resync = self.clock() + RESYNC_S
                self._dirty.update(self.book.services)
            try:
                await self.turn()
            except Away as error:
                log.warning("%s", error)

    async def turn(self) -> None:
        """Looks at every service that has news or is due now."""
        now = self.clock()
        self._dirty.update(key for key, at in self.reconciler.timers.items() if at <= now)
        items: Items = []
        for key in sorted(self._dirty):
            items += self._look(key)
        self._dirty.clear()
        if items:
            await self.storage.write(items)

    def _look(self, key: ObjectKey) -> Items:
        if key.kind != ISVC:
            return []
        before = self.book.documents.get(key)
        items = self.reconciler.reconcile(key, self.clock())
        after = self.book.documents.get(key)
        if after is not None and after is not before:
            self._tell("MODIFIED", after)
        return items

    def _mark(self, keys: list[ObjectKey]) -> None:
        if keys:
            self._dirty.update(keys)
            self._news.set()

    def _tell(self, event: str, document: Document) -> None:
        for watcher in self._watchers:
            watcher.put_nowait((event, document))

    def _item(self, key: ObjectKey) -> tuple[str, bytes | None]:
        return key.store_key, _json(self.book.documents[key])

    def _uid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()
