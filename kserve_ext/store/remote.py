"""The embedded store seen from another process: rpc to whoever hosts it, written behind, watched by long poll.

put() never waits and never fails: writes are coalesced by key and sent in batches, in order, again and again until
the store is back; past MAX_PENDING keys or bytes the oldest are dropped and counted, since nodes and functions hold
the truth and can be asked. A write of put_now() takes the place of one of put() that still waits. Watches start over
with a scan when the store's history no longer reaches back.
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
MAX_PENDING_BYTES = 64 * 1024 * 1024
MAX_VALUE_BYTES = 16 * 1024 * 1024
BATCH = 500
BATCH_BYTES = 1024 * 1024
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
        self._bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._watchers: set[asyncio.Task[None]] = set()

    def put(self, items: Items) -> None:
        for key, value in items:
            self._forget(key)  # the latest write of a key goes to the end
            if value is not None and len(value) > MAX_VALUE_BYTES:
                log.error("%s: %d bytes, at most %d are stored", key, len(value), MAX_VALUE_BYTES)
                self.dropped += 1
                continue
            self._pending[key] = value
            self._bytes += len(value or b"")
        while len(self._pending) > MAX_PENDING or self._bytes > MAX_PENDING_BYTES:
            self._forget(next(iter(self._pending)))
            self.dropped += 1
        if self._pending and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def put_now(self, items: Items, expect: Iterable[tuple[str, int]] = ()) -> int:
        message = StorePut(tuple(items), tuple(expect))
        for key, _ in message.items:
            self._forget(key)
        try:
            reply: StorePutReply = await self.rpc.call(self.addr, message, CALL_TIMEOUT_S)
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

    async def flush(self, timeout_s: float) -> bool:
        """Waits until what was put is written, `timeout_s` at most; whether it is."""
        if self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer], timeout=timeout_s)
        return not self._pending

    def close(self) -> None:
        for task in [*self._watchers, *([self._writer] if self._writer else [])]:
            task.cancel()

    # --- inside

    async def _write(self) -> None:
        pause = BACKOFF_S[0]
        while self._pending:
            batch = self._batch()
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
                    self._forget(key)

    def _batch(self) -> dict[str, bytes | None]:
        batch: dict[str, bytes | None] = {}
        size = 0
        for key, value in self._pending.items():
            size += len(key) + len(value or b"")
            if batch and (len(batch) >= BATCH or size > BATCH_BYTES):
                break
            batch[key] = value
        return batch

    def _forget(self, key: str) -> None:
        if key in self._pending:
            self._bytes -= len(self._pending.pop(key) or b"")

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
