"""The embedded store seen from another process: rpc to whoever hosts it, written behind, watched by long poll.

Watches start over with a scan when the store's history no longer reaches back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable

from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.store import Conflict, Items, OnChange, OnItems, Unavailable
from kserve_ext.store.behind import WHOLE, Batch, WriteBehind, end
from kserve_ext.store.following import Following, follow
from kserve_ext.wire.messages import (
    StoreChanges,
    StoreItems,
    StorePut,
    StorePutReply,
    StoreScan,
    StoreWatch,
)

CALL_TIMEOUT_S = 3.0
POLL_S = 20.0


class RemoteStore:
    """A Store whose content lives at `addr`."""

    def __init__(self, rpc: Rpc, addr: str) -> None:
        self.rpc = rpc
        self.addr = addr
        self.behind = WriteBehind(self._write)
        self._writer = secrets.token_hex(8)
        self._asked = 0
        self._watchers: set[asyncio.Task[None]] = set()

    def put(self, items: Items) -> None:
        self.behind.put(items)

    async def put_now(self, items: Items, expect: Iterable[tuple[str, int]] = ()) -> int:
        written = tuple(items)
        for key, _ in written:
            self.behind.pending.forget(key)  # this write takes the place of one that still waits
        reply = await self._put(written, tuple(expect))
        if not reply.ok:
            raise Conflict(reply.conflict)
        return reply.revision

    async def scan(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        found = await self._scan(prefix)
        return {key: (value, revision) for key, value, revision in found.items if not key.endswith(WHOLE)}

    def watch(self, prefix: str, on_items: OnItems, on_change: OnChange) -> None:
        following = Following(prefix, on_items, on_change)
        after = 0

        async def turn(scan: bool) -> bool:
            nonlocal after
            if scan:
                found = await self._scan(prefix)
                after = found.revision
                following.scanned(found.life, {key: value for key, value, _ in found.items})
            try:
                changes: StoreChanges = await self.rpc.call(self.addr, StoreWatch(prefix, after), POLL_S)
            except RpcError as error:
                raise _away(error) from error
            if changes.reset or changes.life != following.life:
                return True
            after = changes.revision
            again = [following.changed(key, value) for key, value, _ in changes.items]
            return any(again)

        task = asyncio.get_running_loop().create_task(follow(prefix, turn))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    def restate(self, items: Callable[[], Items], whole: Iterable[str] = ()) -> None:
        self.behind.restate(items, whole)

    async def flush(self, timeout_s: float) -> bool:
        return await self.behind.flush(timeout_s)

    async def close(self) -> None:
        await self.behind.close()
        await end(self._watchers)

    # --- inside

    async def _write(self, batch: Batch) -> None:
        await self._put(tuple(batch.items()), ())

    async def _put(
        self, items: tuple[tuple[str, bytes | None], ...], expect: tuple[tuple[str, int], ...]
    ) -> StorePutReply:
        self._asked += 1
        message = StorePut(items, expect, self._writer, self._asked)
        try:
            reply: StorePutReply = await self.rpc.call(self.addr, message, CALL_TIMEOUT_S)
        except RpcError as error:
            raise _away(error) from error
        self.behind.heard(reply.life)
        if reply.late:
            raise Unavailable(f"state store {self.addr}: a later write of this process was done before")
        return reply

    async def _scan(self, prefix: str) -> StoreItems:
        try:
            found: StoreItems = await self.rpc.call(self.addr, StoreScan(prefix), CALL_TIMEOUT_S)
        except RpcError as error:
            raise _away(error) from error
        self.behind.heard(found.life)
        return found


def _away(error: RpcError) -> Unavailable:
    return Unavailable(f"state store: {error}")
