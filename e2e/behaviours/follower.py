"""Follows objects of the API server in a thread of its own, so that a test finds out what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from typing import Self

from e2e.stack import watch
from e2e.stack.place import Place


class Follower:
    """A context. Listeners are called in the thread: `watch.follow` says with what."""

    def __init__(self, place: Place, listeners: Mapping[str, watch.Listener]) -> None:
        """`listeners` by the path of what they hear of, which may carry a query."""
        self._place = place
        self._listeners = listeners
        self._loop = asyncio.new_event_loop()
        self._following = self._loop.create_task(self._follow())
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._following.cancel)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._following)

    async def _follow(self) -> None:
        async with watch.session(self._place) as client:
            await asyncio.gather(
                *(watch.follow(client, path, listener) for path, listener in self._listeners.items())
            )
