"""The webhook's process: server and keeper, and an end that no request notices."""

from __future__ import annotations

import asyncio
import contextlib

from autoscaler_shim.webhook.keeper import Keeper
from autoscaler_shim.webhook.server import Server
from autoscaler_shim.webhook.settings import Settings
from kserve_ext.kube.client import Client


class Webhook:
    """`start` once, then `stop` once."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._drain_s = settings.drain_s
        self._ending = False
        self.server = Server(settings, self.ready)
        self.keeper = Keeper(client, settings.namespace, self.server.show)
        self._keeping: asyncio.Task[None] | None = None

    def ready(self) -> bool:
        return self.keeper.trusted and not self._ending

    async def start(self) -> None:
        await self.server.start()
        self._keeping = asyncio.create_task(self.keeper.run())

    async def ended(self) -> None:
        """Raises what ended the keeper, which is a bug."""
        assert self._keeping is not None
        await self._keeping

    async def stop(self) -> None:
        """Not ready any more, then as ever for a while: the API server hears late of a pod that goes."""
        self._ending = True
        if self.keeper.trusted:
            await asyncio.sleep(self._drain_s)
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        await self.server.stop()
