"""Calls something for each of many keys once a period, spread over the period instead of all at once.

Knative has a goroutine and a ticker for each; here one task walks over slots, and a key belongs to the slot that
had the fewest when it came. A walk that has fallen behind by a whole period skips what it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

SLOTS = 20


class Wheel:
    def __init__(
        self, period_s: float, turn: Callable[[str], object], each: Callable[[], object] = bool
    ) -> None:
        """`each` is called at every slot, also where nobody is in it."""
        self._period_s = period_s
        self._turn = turn
        self._each = each
        self._slots: list[dict[str, None]] = [{} for _ in range(SLOTS)]
        self._slot_of: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, key: str) -> None:
        if key not in self._slot_of:
            emptiest = min(range(SLOTS), key=lambda slot: len(self._slots[slot]))
            self._slots[emptiest][key] = None
            self._slot_of[key] = emptiest

    def discard(self, key: str) -> None:
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            del self._slots[slot][key]

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        step_s = self._period_s / SLOTS
        due = clock()
        slot = 0
        while True:
            self._each()
            for key in tuple(self._slots[slot]):
                try:
                    self._turn(key)
                except Exception:
                    log.exception("%s: its turn failed, it comes again in %g s", key, self._period_s)
            slot = (slot + 1) % SLOTS
            due = max(due + step_s, clock() - self._period_s)
            await asyncio.sleep(max(0.0, due - clock()))
