"""Every kind of state store as tests need it: opened several times, taken away, brought back, emptied."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from kserve_ext.rpc import Rpc
from kserve_ext.store import Store
from kserve_ext.store.journal import Journal
from kserve_ext.store.location import Location
from kserve_ext.store.redis import RedisStore
from kserve_ext.store.remote import RemoteStore
from kserve_ext.store.server import StoreServer
from tests.support.redis_server import RedisServer

KEY = b"k" * 32


class Backing(Protocol):
    """What keeps the content."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def empty(self) -> None: ...

    def open(self) -> Store: ...

    async def close(self) -> None: ...


class Embedded:
    """A journal behind rpc; `inside`: its users are in the process that hosts it."""

    def __init__(self, folder: Path, *, inside: bool) -> None:
        self.folder = folder / "store"
        self.inside = inside
        self.port = 0
        self.addr = ""
        self.host = self.client = Rpc("controller-0", KEY)
        if not inside:
            self.client = Rpc("client", KEY)

    async def start(self) -> None:
        if not self.addr or not self.inside:
            self.addr = await self.host.listen("127.0.0.1", self.port)
            self.port = int(self.addr.rpartition(":")[2])
        self.journal = Journal(self.folder)
        StoreServer(self.host, self.journal)

    async def stop(self) -> None:
        self.journal.close()
        if not self.inside:
            await self.host.close()
            self.host = Rpc("controller-0", KEY)

    async def empty(self) -> None:
        await self.stop()
        shutil.rmtree(self.folder)
        await self.start()

    def open(self) -> Store:
        return RemoteStore(self.client, self.addr)

    async def close(self) -> None:
        await self.client.close()
        await self.host.close()
        self.journal.close() if self.inside else None


class OnRedis:
    """A real server."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder, kept=True)

    async def start(self) -> None:
        self.server.start()

    async def stop(self) -> None:
        self.server.kill()

    async def empty(self) -> None:
        self.server.command("FLUSHALL")

    def open(self) -> Store:
        return RedisStore(Location.of(self.server.url, KEY))

    async def close(self) -> None:
        self.server.kill()


def backing(kind: str, folder: Path) -> Backing:
    return OnRedis(folder) if kind == "redis" else Embedded(folder, inside=kind == "memory")
