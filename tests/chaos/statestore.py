"""The state store of a chaos run with several controllers: a Redis server, which is killed, paused and emptied."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from tests.support.redis_server import RedisServer
from tools import redis_server
from tools.setup.layout import Layout
from tools.setup.steps import SetupError


def why_not() -> str:
    """Why there can be none here; "" where there can."""
    try:
        redis_server.bring(Layout.of_user())
    except SetupError as error:
        return str(error)
    return ""


class StateStore:
    """Keeps nothing on disk: one that was killed comes back empty."""

    def __init__(self, folder: Path, host: str, started: Callable[[int], None]) -> None:
        """`started`: is told the pid of each server, so that it ends with the run."""
        self._started = started
        #: kills that keep it away; while it is started nobody kills it
        self._away = 0
        self._starting = asyncio.Lock()
        folder.mkdir()
        where = sorted({host, "127.0.0.1"})
        self._server = RedisServer(folder, "--bind", *where, "--protected-mode", "no")
        self.url = f"redis://{host}:{self._server.port}/0"

    def __str__(self) -> str:
        return "store"

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)
        self._started(self._server.pid)

    def close(self) -> None:
        self._server.kill()

    async def suffer(self, kind: str, seconds: float) -> None:
        """kill, pause or flush; it may be suffering something else already, or be away."""
        match kind:
            case "kill":
                self._away += 1
                async with self._starting:
                    self._server.kill()
                await asyncio.sleep(seconds)
                self._away -= 1
                async with self._starting:
                    if not (self._away or self._server.running):
                        await self.start()
            case "pause":
                paused = self._server.pid if self._server.running else 0
                if paused:
                    self._server.pause()
                await asyncio.sleep(seconds)
                if self._server.running and self._server.pid == paused:
                    self._server.resume()
            case "flush":
                with contextlib.suppress(OSError):  # one that is away keeps nothing anyway
                    await asyncio.to_thread(self._server.command, "FLUSHALL")
            case _:
                raise ValueError(f"there is no fault {kind!r} of the store")
