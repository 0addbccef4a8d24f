"""What a watcher is told, whatever the store went through. Pure; the adapters bring scans and changes.

After a gap in the same life of the store a scan is the truth, and what it doesn't hold has gone. A store that has
lost its content (another life) holds too little until everybody has restated: what it has is told as changes, and
nothing is taken for gone, until the owner of the prefix has marked it whole in that life. So an emptied store takes
no route, revision or instance from whoever knows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from kserve_ext.store import OnChange, OnItems, Unavailable
from kserve_ext.store.behind import BACKOFF_S, WHOLE

log = logging.getLogger(__name__)


class Following:
    """Of one prefix."""

    def __init__(self, prefix: str, on_items: OnItems, on_change: OnChange) -> None:
        self.prefix = prefix
        self.life = ""
        #: the store holds less than this watcher was told
        self.partial = False
        self._on_items = on_items
        self._on_change = on_change

    def scanned(self, life: str, items: dict[str, bytes]) -> None:
        """What lies under the prefix, in this life of the store. Raises what the watcher raises."""
        whole = items.pop(self.prefix + WHOLE, b"").decode()
        lost = bool(self.life) and life != self.life
        self.life = life
        self.partial = (self.partial or lost) and whole != life
        if not self.partial:
            self._on_items(items)
            return
        for key, value in items.items():
            self.changed(key, value)

    def changed(self, key: str, value: bytes | None) -> bool:
        """One change in the life that was scanned last; whether to scan again."""
        if key == self.prefix + WHOLE:
            return self.partial
        try:
            self._on_change(key, value)
        except Exception:
            log.exception("taking in %s failed", key)
        return False


async def follow(prefix: str, turn: Callable[[bool], Awaitable[bool]]) -> None:
    """Runs `turn(scan first)` for ever; it returns whether the next is to scan, and raises Unavailable."""
    scan = True
    pause = BACKOFF_S[0]
    while True:
        try:
            scan = await turn(scan)
            pause = BACKOFF_S[0]
        except Unavailable as error:
            if pause == BACKOFF_S[0]:
                log.warning("watching %s: %s", prefix, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_S[1])
        except Exception:
            log.exception("taking in %s failed; scanning it again", prefix)
            scan = True
            await asyncio.sleep(BACKOFF_S[1])
