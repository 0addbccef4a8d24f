"""Serves a journalled store over rpc; in the embedded default the top-level controller's process hosts it."""

from __future__ import annotations

import asyncio

from kserve_ext.rpc import Caller, Rpc
from kserve_ext.store.journal import Journal
from kserve_ext.wire.messages import (
    StoreChanges,
    StoreItems,
    StorePut,
    StorePutReply,
    StoreScan,
    StoreWatch,
)

#: a long poll answers, empty, this long before its caller gives up
MARGIN_S = 1.0


class StoreServer:
    """The rpc handlers of the store."""

    def __init__(self, rpc: Rpc, journal: Journal) -> None:
        self.journal = journal
        self._waiting: set[asyncio.Future[None]] = set()
        rpc.handle(StorePut, self.put)
        rpc.handle(StoreScan, self.scan)
        rpc.handle(StoreWatch, self.watch)

    def put(self, message: StorePut, caller: Caller) -> StorePutReply:
        memory = self.journal.memory
        conflict = memory.conflict(message.expect)
        if conflict:
            return StorePutReply(False, memory.revision, conflict)
        self.journal.put(list(message.items))
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            _wake(future)
        return StorePutReply(True, memory.revision)

    def scan(self, message: StoreScan, caller: Caller) -> StoreItems:
        memory = self.journal.memory
        return StoreItems(tuple(memory.scan(message.prefix)), memory.revision)

    async def watch(self, message: StoreWatch, caller: Caller) -> StoreChanges:
        loop = asyncio.get_running_loop()
        until = caller.expires - MARGIN_S
        memory = self.journal.memory
        while True:
            changes = memory.changes(message.prefix, message.after)
            if changes is None:
                return StoreChanges((), memory.revision, reset=True)
            if changes or loop.time() >= until:
                return StoreChanges(tuple((c.key, c.value, c.revision) for c in changes), memory.revision)
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.add(future)
            handle = loop.call_at(until, _wake, future)
            await future
            handle.cancel()
            self._waiting.discard(future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
