"""What runs in the background of a process for as long as it lives: a fault ends none of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

RESTART_S = 1.0


async def kept_up(what: str, run: Callable[[], Awaitable[None]]) -> None:
    """Runs until it is cancelled: a fault ends neither it nor, unseen, what everybody relies on; it begins anew."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("%s failed; it begins anew in %g s", what, RESTART_S)
        else:
            log.error("%s ended by itself; it begins anew in %g s", what, RESTART_S)
        await asyncio.sleep(RESTART_S)
