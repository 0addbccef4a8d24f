"""The store as the objects process needs it: acknowledged writes in order, and a watch.

What a person applied is acknowledged only when the store has it. Writes go out in the order in which they were made,
several at once when more have gathered; while the store is away they wait, and the caller is told after a bounded
time that they do. Other functions write behind (kserve_ext/store); this one must not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.wire.messages import StoreChanges, StoreItems, StorePut, StoreScan, StoreWatch

log = logging.getLogger(__name__)

Items = list[tuple[str, bytes | None]]
WATCH_S: Final = 20.0
RETRY_S: Final = 0.2
#: How long a caller waits to hear that its write is durable.
PATIENCE_S: Final = 8.0


class Away(Exception):
    """The store has not acknowledged in time; the write stays queued."""


class Storage(Protocol):
    async def write(self, items: Items) -> None:
        """Returns when durable; Away when that takes too long."""

    async def scan(self, prefix: str) -> list[tuple[str, bytes]]: ...

    async def watch(self, prefix: str, changed: Callable[[str, bytes | None], None]) -> None:
        """Runs until cancelled; calls `changed` for everything there is, and then for every change."""


class RpcStorage:
    """Storage over the controller's rpc."""

    def __init__(self, rpc: Rpc, controller: str) -> None:
        self.rpc = rpc
        self.controller = controller
        self._queue: list[tuple[Items, asyncio.Future[None]]] = []
        self._news = asyncio.Event()

    async def write(self, items: Items) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((items, done))
        self._news.set()
        try:
            await asyncio.wait_for(asyncio.shield(done), PATIENCE_S)
        except TimeoutError:
            raise Away(
                f"the state store ({self.controller}) has not acknowledged within {PATIENCE_S:g} s"
            ) from None

    async def run(self) -> None:
        """The writer; runs until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._queue:
                batch = list(self._queue)
                await self._put([item for items, _ in batch for item in items])
                del self._queue[: len(batch)]
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)

    async def _put(self, items: Items) -> None:
        said = False
        while True:
            try:
                await self.rpc.call(self.controller, StorePut(tuple(items)), 2.0)
                return
            except RpcError as error:
                if not said:
                    log.warning("store: %d writes wait: %s", len(items), error)
                    said = True
                await asyncio.sleep(RETRY_S)

    async def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        reply: StoreItems = await self.rpc.call(self.controller, StoreScan(prefix), 5.0)
        return [(key, value) for key, value, _ in reply.items]

    async def watch(self, prefix: str, changed: Callable[[str, bytes | None], None]) -> None:
        known: set[str] = set()
        after = -1
        while True:
            try:
                if after < 0:
                    found: StoreItems = await self.rpc.call(self.controller, StoreScan(prefix), 5.0)
                    now = {key for key, _, _ in found.items}
                    _tell(changed, ((key, None) for key in known - now))
                    _tell(changed, ((key, value) for key, value, _ in found.items))
                    known, after = now, found.revision
                news: StoreChanges = await self.rpc.call(self.controller, StoreWatch(prefix, after), WATCH_S)
            except RpcError as error:
                log.info("store: watch of %s begins again: %s", prefix, error)
                after = -1
                await asyncio.sleep(RETRY_S)
                continue
            if news.reset:
                after = -1
                continue
            for key, value, _ in news.items:
                known.discard(key) if value is None else known.add(key)
            _tell(changed, ((key, value) for key, value, _ in news.items))
            after = news.revision


def _tell(changed: Callable[[str, bytes | None], None], items: Iterable[tuple[str, bytes | None]]) -> None:
    for key, value in items:
        try:
            changed(key, value)
        except Exception:
            log.exception("store: what %s says could not be read", key)
