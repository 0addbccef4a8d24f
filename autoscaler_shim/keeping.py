"""Where a controller keeps what must outlive it: the view, and which functions it has started.

A controller that is the only one says a new view at once and writes it beside that. One of several says nothing that
isn't written, and all that it writes is fenced by its term (kserve_ext/store/lease.py): what a leader publishes is
what its successor finds, and who was succeeded without noticing can publish nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from kserve_ext.store import Conflict, Store, Unavailable
from kserve_ext.store.lease import Term
from kserve_ext.store.server import StoreServer

log = logging.getLogger(__name__)

VIEW_KEY: Final = "view"
KEPT_KEY: Final = "functions"
AGAIN_S: Final = 0.1
#: A controller that is the only one begins without the store after so long: members tell it the epoch.
PATIENCE_S: Final = 5.0


class Keeper(Protocol):
    """Of one controller that leads."""

    #: something was put that must be written before anybody hears of it, and isn't yet
    busy: bool
    #: the store has lost what was kept: members may know newer views than this process does
    lost: bool
    #: called when nothing is under way any more
    on_written: Callable[[], None]

    def put(self, key: str, value: bytes) -> None: ...

    async def written(self) -> None:
        """Returns when not busy."""


class Alone:
    """In the journal that this process hosts, or in a store written behind; never busy."""

    busy = lost = False

    def __init__(self, write: Callable[[str, bytes], None]) -> None:
        self.put = write
        self.on_written: Callable[[], None] = _nothing

    async def written(self) -> None:
        return


def in_journal(server: StoreServer) -> Alone:
    def write(key: str, value: bytes) -> None:
        try:
            server.write([(key, value)])
        except OSError as error:  # members and nodes know, and tell the next controller
            log.error("%s is not stored: %s", key, error)

    return Alone(write)


def behind(store: Store) -> Alone:
    known: dict[str, bytes | None] = {}
    store.restate(known.items)

    def write(key: str, value: bytes) -> None:
        known[key] = value
        store.put([(key, value)])

    return Alone(write)


async def read_if_there(store: Store) -> dict[str, bytes]:
    """For the only controller: {} where the store doesn't answer, since members tell it the epoch."""
    try:
        return await read(store, PATIENCE_S)
    except Unavailable as error:
        log.error("beginning without what an earlier controller has kept: %s", error)
        return {}


async def read(store: Store, patience_s: float) -> dict[str, bytes]:
    """What an earlier controller has kept. Raises Unavailable where the store doesn't answer for so long."""
    until = asyncio.get_running_loop().time() + patience_s
    while True:
        try:
            found = [await store.scan(key) for key in (VIEW_KEY, KEPT_KEY)]
        except Unavailable:
            if asyncio.get_running_loop().time() >= until:
                raise
            await asyncio.sleep(AGAIN_S)
            continue
        return {
            key: value for items in found for key, (value, _) in items.items() if key in (VIEW_KEY, KEPT_KEY)
        }


class InTerm:
    """In a shared store, under one term; `over` is called once it has ended."""

    def __init__(self, term: Term, over: Callable[[], None]) -> None:
        self.busy = self.lost = False
        self.on_written: Callable[[], None] = _nothing
        self._term = term
        self._over = over
        self._items: dict[str, bytes | None] = {}
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def put(self, key: str, value: bytes) -> None:
        self._items[key] = value
        self.busy = True
        self._idle.clear()
        if self._closed:
            return  # a call that outlives its term: its end must not end the next one
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def written(self) -> None:
        while self.busy:
            await self._idle.wait()

    def close(self) -> None:
        """Nothing more is written; what is put from here on never is."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    async def _write(self) -> None:
        said = False
        while self._items:
            items = dict(self._items)
            try:
                await self._term.write(items.items())
            except Conflict as error:
                log.warning("this term is over: %s", error)
                self._over()
                return
            except Unavailable as error:
                if not said:
                    log.warning("no new view until it is written: %s", error)
                    said = True
                await asyncio.sleep(AGAIN_S)
                continue
            said = False
            self._items = {key: value for key, value in self._items.items() if items.get(key) is not value}
        self.busy = False
        self._idle.set()
        self.on_written()


def _nothing() -> None:
    return
