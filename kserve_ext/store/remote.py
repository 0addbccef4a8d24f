"""The embedded store seen from another process: rpc to whoever hosts it, written behind, watched by long poll.

put() never waits and never fails: writes are coalesced by key and sent in batches, in order, again and again until
the store is back; past MAX_PENDING keys the oldest are dropped and counted, since nodes and functions hold the
truth and can be asked. Watches start over with a scan when the store's history no longer reaches back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.store import Conflict, Items, OnChange, OnItems, Unavailable
from kserve_ext.wire.messages import (
    StoreChanges,
    StoreItems,
    StorePut,
    StorePutReply,
    StoreScan,
    StoreWatch,
)

log = logging.getLogger(__name__)

MAX_PENDING = 100_000
BATCH = 500
CALL_TIMEOUT_S = 3.0
POLL_S = 20.0
BACKOFF_S = (0.05, 1.0)


class RemoteStore:
    """A Store whose content lives at `addr`."""

    def __init__(self, rpc: Rpc, addr: str) -> None:
        self.rpc = rpc
        self.addr = addr
        self.dropped = 0
        self._pending: dict[str, bytes | None] = {}
        self._writer: asyncio.Task[None] | None = None
        self._watchers: set[asyncio.Task[None]] = set()

    def put(self, items: Items) -> None:
        for key, value in items:
            self._pending.pop(key, None)  # the latest write of a key goes to the end
            self._pending[key] = value
        while len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
            self.dropped += 1
        if self._pending and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def put_now(self, items: Items, expect: Iterable[tuple[str, int]] = ()) -> int:
        try:
            reply: StorePutReply = await self.rpc.call(
                self.addr, StorePut(tuple(items), tuple(expect)), CALL_TIMEOUT_S
            )
        except RpcError as error:
            raise Unavailable(f"state store: {error}") from error
        if not reply.ok:
            raise Conflict(reply.conflict)
        return reply.revision

    async def scan(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        try:
            reply: StoreItems = await self.rpc.call(self.addr, StoreScan(prefix), CALL_TIMEOUT_S)
        except RpcError as error:
            raise Unavailable(f"state store: {error}") from error
        return {key: (value, revision) for key, value, revision in reply.items}

    def watch(self, prefix: str, on_items: OnItems, on_change: OnChange) -> None:
        task = asyncio.get_running_loop().create_task(self._follow(prefix, on_items, on_change))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    def close(self) -> None:
        for task in [*self._watchers, *([self._writer] if self._writer else [])]:
            task.cancel()

    # --- inside

    async def _write(self) -> None:
        pause = BACKOFF_S[0]
        while self._pending:
            batch = dict(list(self._pending.items())[:BATCH])
            try:
                await self.rpc.call(self.addr, StorePut(tuple(batch.items())), CALL_TIMEOUT_S)
            except RpcError as error:
                if pause == BACKOFF_S[0]:
                    log.warning("state store is away, keep %d writes: %s", len(self._pending), error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_S[1])
                continue
            pause = BACKOFF_S[0]
            for key, value in batch.items():
                if key in self._pending and self._pending[key] is value:
                    del self._pending[key]

    async def _follow(self, prefix: str, on_items: OnItems, on_change: OnChange) -> None:
        after = -1
        pause = BACKOFF_S[0]
        while True:
            try:
                if after < 0:
                    found: StoreItems = await self.rpc.call(self.addr, StoreScan(prefix), CALL_TIMEOUT_S)
                    after = found.revision
                    on_items({key: value for key, value, _ in found.items})
                changes: StoreChanges = await self.rpc.call(self.addr, StoreWatch(prefix, after), POLL_S)
            except RpcError as error:
                if pause == BACKOFF_S[0]:
                    log.warning("watching %s: %s", prefix, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_S[1])
                continue
            except Exception:
                log.exception("taking in %s failed; scanning it again", prefix)
                after = -1
                await asyncio.sleep(BACKOFF_S[1])
                continue
            pause = BACKOFF_S[0]
            if changes.reset:
                after = -1
                continue
            after = changes.revision
            for key, value, _ in changes.items:
                try:
                    on_change(key, value)
                except Exception:
                    log.exception("taking in %s failed", key)
