"""Writes behind, for every adapter: what waits to be written, in what batches it goes, what is lost when.

A write leaves in the same turn of the loop unless a batch is under way; what comes meanwhile is coalesced by key and
goes as the next batch, in order, again and again until the store takes it. So a process that is killed loses what it
put since its last batch left: one round trip's worth, or, while the store is away, all that waits, which is
MAX_PENDING keys and MAX_PENDING_BYTES at most. Past these the oldest are dropped and counted: nodes and functions
hold the truth and can be asked.

A store that has lost its content (another *life* of it) is told again all that this process knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from kserve_ext.store import Items, Unavailable

log = logging.getLogger(__name__)

MAX_PENDING: Final = 100_000
MAX_PENDING_BYTES: Final = 64 * 1024 * 1024
MAX_VALUE_BYTES: Final = 16 * 1024 * 1024
BATCH: Final = 500
BATCH_BYTES: Final = 1024 * 1024
BACKOFF_S: Final = (0.05, 1.0)
#: Behind a prefix: the life of the store in which all that lies under it was written again by its owner.
WHOLE: Final = "\0whole"

Batch = dict[str, bytes | None]


class Pending:
    """What waits to be written: the latest value of each key, in order of the latest writes. Pure."""

    def __init__(self, most: int = MAX_PENDING, most_bytes: int = MAX_PENDING_BYTES) -> None:
        self.dropped = 0
        self.bytes = 0
        self._most = most
        self._most_bytes = most_bytes
        self._items: Batch = {}

    def __len__(self) -> int:
        return len(self._items)

    def waiting(self) -> list[str]:
        return list(self._items)

    def put(self, items: Items) -> list[str]:
        """Takes the writes; the keys whose value is too large to be stored at all."""
        refused = []
        for key, value in items:
            self.forget(key)  # the latest write of a key goes to the end
            if value is not None and len(value) > MAX_VALUE_BYTES:
                refused.append(key)
                continue
            self._items[key] = value
            self.bytes += len(value or b"")
        while len(self._items) > self._most or self.bytes > self._most_bytes:
            self.forget(next(iter(self._items)))
            self.dropped += 1
        self.dropped += len(refused)
        return refused

    def batch(self) -> Batch:
        """What goes next; it waits on until written()."""
        batch: Batch = {}
        size = 0
        for key, value in self._items.items():
            size += len(key) + len(value or b"")
            if batch and (len(batch) >= BATCH or size > BATCH_BYTES):
                break
            batch[key] = value
        return batch

    def written(self, batch: Batch) -> None:
        """The store has it; a key that was put again meanwhile waits on."""
        for key, value in batch.items():
            if key in self._items and self._items[key] is value:
                self.forget(key)

    def forget(self, key: str) -> None:
        if key in self._items:
            self.bytes -= len(self._items.pop(key) or b"")


class WriteBehind:
    """Hands batches to `write` (raises Unavailable) as long as anything waits."""

    def __init__(self, write: Callable[[Batch], Awaitable[object]], pending: Pending | None = None) -> None:
        self.pending = Pending() if pending is None else pending
        #: which life of the store was heard last; "" = none yet
        self.life = ""
        self._write = write
        self._known: list[tuple[Callable[[], Items], tuple[str, ...]]] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, items: Items) -> None:
        for key in self.pending.put(items):
            log.error("%s: more than %d bytes are not stored", key, MAX_VALUE_BYTES)
        if self.pending and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    def restate(self, items: Callable[[], Items], whole: Iterable[str]) -> None:
        self._known.append((items, tuple(whole)))

    def heard(self, life: str) -> None:
        """The store has said which life of it this is; another one than before has lost what was written."""
        if not life or life == self.life:
            return
        former, self.life = self.life, life
        if not former:
            return
        log.warning("the state store has lost its content: telling it again what this process knows")
        for items, whole in self._known:
            self.put([*items(), *((prefix + WHOLE, life.encode()) for prefix in whole)])

    async def flush(self, timeout_s: float) -> bool:
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=timeout_s)
        return not self.pending

    async def close(self) -> None:
        if self._task is not None:
            await end([self._task])

    async def _run(self) -> None:
        pause = BACKOFF_S[0]
        while self.pending:
            batch = self.pending.batch()
            try:
                await self._write(batch)
            except Unavailable as error:
                if pause == BACKOFF_S[0]:
                    log.warning("keeping %d writes: %s", len(self.pending), error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_S[1])
                continue
            pause = BACKOFF_S[0]
            self.pending.written(batch)


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels until they have ended: what they await may keep a cancellation to itself (asyncio.wait_for does)."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.05)
