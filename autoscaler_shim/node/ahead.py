"""What a node does ahead of the first start of a revision, as soon as it is known: zygotes, and models.

The zygote of its runtime is kept ready (its imports are most of a cold start), and with preload `node` its model is
fetched. Reads the revisions from the state store; without the store nothing is lost, the start does it then. What
does not fit this node even when it is empty is left to other nodes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from autoscaler_shim.node.instances import Instances
from kserve_ext.core.facts import Resources, Revision
from kserve_ext.fluid.preload import ModelUnavailable, ModelUnusable
from kserve_ext.store import Store

log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(Revision).decode


class Ahead:
    def __init__(
        self, instances: Instances, capacity: Resources, want: Callable[[frozenset[str]], None]
    ) -> None:
        """`want` is told the runtime modules of all revisions that fit, whenever these change."""
        self.instances, self.capacity, self.want = instances, capacity, want
        self._modules: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, store: Store) -> None:
        store.watch("revisions/", self._all, self._changed)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _all(self, items: dict[str, bytes]) -> None:
        for key in set(self._modules) - set(items):
            self._changed(key, None)
        for key, value in items.items():
            self._changed(key, value)

    def _changed(self, key: str, value: bytes | None) -> None:
        before = frozenset(self._modules.values())
        revision = _decode(value) if value else None
        self._modules.pop(key, None)
        if revision is not None and revision.needs.fits(self.capacity):
            if revision.command.zygote:
                self._modules[key] = revision.command.zygote
            self._known(revision)
        after = frozenset(self._modules.values())
        if after != before:
            self.want(after)

    def _known(self, revision: Revision) -> None:
        if revision.model.preload == "node" and revision.model.uri:
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
