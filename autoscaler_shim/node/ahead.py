"""Fetches models ahead of their first start: those of revisions with preload `node`, as soon as one is known.

Reads the revisions from the state store; without the store nothing is lost, the start fetches the model then.
A revision that does not fit this node even when it is empty is left to other nodes.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from autoscaler_shim.node.instances import Instances
from kserve_ext.core.facts import Resources, Revision
from kserve_ext.fluid.preload import ModelUnavailable, ModelUnusable
from kserve_ext.store import Store

log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(Revision).decode


class Ahead:
    def __init__(self, instances: Instances, capacity: Resources) -> None:
        self.instances, self.capacity = instances, capacity
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, store: Store) -> None:
        store.watch("revisions/", self._all, lambda key, value: self._known(value))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _all(self, items: dict[str, bytes]) -> None:
        for value in items.values():
            self._known(value)

    def _known(self, value: bytes | None) -> None:
        revision = _decode(value) if value else None
        if revision is None or revision.model.preload != "node" or not revision.model.uri:
            return
        if revision.needs.fits(self.capacity):
            task = asyncio.get_running_loop().create_task(self._fetch(revision))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fetch(self, revision: Revision) -> None:
        try:
            near = await self.instances.near(revision, lambda progress: None)
        except (ModelUnusable, ModelUnavailable) as error:
            log.warning("preload of %s: %s", revision.key, error)
        else:
            log.info("preload of %s: %s", revision.key, near.how)
