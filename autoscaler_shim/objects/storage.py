"""The store as the objects process needs it: acknowledged writes in order, and a watch.

What a person applied is acknowledged only when the store has it. Writes go out in the order in which they were made,
several at once when more have gathered; while the store is away they wait, and the caller is told after a bounded
time that they do. Other functions write behind (Store.put); this one must not. All that is the objects process's own
it keeps at hand: a store that lost its content is told it again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from kserve_ext.store import Store, Unavailable

log = logging.getLogger(__name__)

Items = list[tuple[str, bytes | None]]
RETRY_S: Final = 0.1
#: Under these nobody else writes.
OWN: Final = ("objects/", "rollouts/", "revisions/", "routes/")
#: How long a caller waits to hear that its write is durable.
PATIENCE_S: Final = 8.0


class Away(Exception):
    """The store has not acknowledged in time; the write stays queued."""


class Storage(Protocol):
    async def write(self, items: Items) -> None:
        """Returns when durable; Away when that takes too long."""

    async def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """Everything under the prefix; waits for the store as long as it takes."""


class OrderedStorage:
    """Storage over the cluster's state store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        #: what is or will be stored under OWN, as far as it was scanned or written
        self._own: dict[str, bytes] = {}
        self._queue: list[tuple[Items, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        store.restate(lambda: list(self._own.items()), OWN)

    async def write(self, items: Items) -> None:
        if not items:
            return
        for key, value in items:
            if value is None:
                self._own.pop(key, None)
            elif key.startswith(OWN):
                self._own[key] = value
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._queue.append((items, done))
        if self._writer is None or self._writer.done():
            self._writer = loop.create_task(self._write())
        try:
            await asyncio.wait_for(asyncio.shield(done), PATIENCE_S)
        except TimeoutError:
            raise Away(f"the state store has not acknowledged within {PATIENCE_S:g} s") from None

    async def _write(self) -> None:
        said = False
        while self._queue:
            batch = list(self._queue)
            try:
                await self.store.put_now([item for items, _ in batch for item in items])
            except Unavailable as error:
                if not said:
                    log.warning("writes wait: %s", error)
                    said = True
                await asyncio.sleep(RETRY_S)
                continue
            del self._queue[: len(batch)]
            for _, done in batch:
                if not done.done():
                    done.set_result(None)

    async def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        while True:
            try:
                found = await self.store.scan(prefix)
            except Unavailable as error:
                log.warning("can't read %s yet: %s", prefix, error)
                await asyncio.sleep(RETRY_S)
                continue
            if prefix in OWN:
                self._own |= {key: value for key, (value, _) in found.items()}
            return [(key, value) for key, (value, _) in sorted(found.items())]
