"""Serves a journalled store over rpc; in the embedded default the top-level controller's process hosts it.

A watch is a long poll: it answers with what is newer than its caller's revision, else waits for the next write under
its prefix, and answers empty shortly before its caller would give up.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from kserve_ext.rpc import Caller, Rpc
from kserve_ext.store.journal import Journal
from kserve_ext.store.memory import Change
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
MOST_WRITERS = 10_000


class _Waiter(NamedTuple):
    """A long poll: nothing under its prefix has changed since its caller's revision."""

    prefix: str
    future: asyncio.Future[StoreChanges]


class StoreServer:
    """The rpc handlers of the store."""

    def __init__(self, rpc: Rpc, journal: Journal) -> None:
        self.journal = journal
        self._waiting: set[_Waiter] = set()
        #: what each writer asked last; those that have been silent for longest first
        self._done: dict[str, int] = {}
        rpc.handle(StorePut, self.put)
        rpc.handle(StoreScan, self.scan)
        rpc.handle(StoreWatch, self.watch)

    def put(self, message: StorePut, caller: Caller) -> StorePutReply:
        memory = self.journal.memory
        if message.writer:
            last = self._done.pop(message.writer, 0)
            self._done[message.writer] = max(last, message.sequence)
            if last >= message.sequence:
                return StorePutReply(False, memory.revision, life=self.journal.life, late=True)
            if len(self._done) > MOST_WRITERS:
                del self._done[next(iter(self._done))]
        conflict = memory.conflict(message.expect)
        if conflict:
            return StorePutReply(False, memory.revision, conflict, life=self.journal.life)
        self.write(list(message.items))
        return StorePutReply(True, memory.revision, life=self.journal.life)

    def write(self, items: list[tuple[str, bytes | None]]) -> None:
        """Writes, and answers the long polls that wait for one of these changes. Raises OSError."""
        changes = self.journal.put(items)
        for waiter in list(self._waiting):
            found = tuple(change for change in changes if change.key.startswith(waiter.prefix))
            if found:
                _answer(waiter.future, self._changes(found))

    def scan(self, message: StoreScan, caller: Caller) -> StoreItems:
        memory = self.journal.memory
        return StoreItems(tuple(memory.scan(message.prefix)), memory.revision, self.journal.life)

    async def watch(self, message: StoreWatch, caller: Caller) -> StoreChanges:
        memory = self.journal.memory
        changes = memory.changes(message.prefix, message.after)
        if changes is None:
            return self._changes((), reset=True)
        if changes:
            return self._changes(tuple(changes))
        loop = asyncio.get_running_loop()
        waiter = _Waiter(message.prefix, loop.create_future())
        self._waiting.add(waiter)
        empty = loop.call_at(caller.expires - MARGIN_S, lambda: _answer(waiter.future, self._changes(())))
        try:
            return await waiter.future
        finally:
            empty.cancel()
            self._waiting.discard(waiter)

    def _changes(self, found: tuple[Change, ...], *, reset: bool = False) -> StoreChanges:
        return StoreChanges(found, self.journal.memory.revision, reset, self.journal.life)


def _answer(future: asyncio.Future[StoreChanges], changes: StoreChanges) -> None:
    if not future.done():
        future.set_result(changes)
