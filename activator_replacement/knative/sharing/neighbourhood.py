"""How an activator comes to share slots: the key, the port where others speak to it, and where they are.

At the same port the agents of nodes say which standby pods serve a revision now (decision 33).

Where the activators are is read from the Endpoints of activator-service, which Knative's role allows. Without a key
or a port it shares with nobody, and says why; nothing else depends on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from activator_replacement.knative.dispatcher import Dispatcher
from activator_replacement.knative.settings import Settings
from activator_replacement.knative.sharing.sharing import Sharing
from kserve_ext.core.ids import RevisionKey
from kserve_ext.kube.client import Client
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import ENDPOINTS
from kserve_ext.kube.peers_key import shared_key
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.rpc.background import kept_up
from kserve_ext.rpc.mutual_tls import Identity
from kserve_ext.wire.messages import ModInstance, ModInstanceReply

log = logging.getLogger(__name__)

ACTIVATORS: Final = "activator-service"


class Neighbourhood:
    """`join` before revisions come, `meet` before requests come, `close` once."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        dispatcher: Dispatcher,
        identity: Identity | None = None,
    ) -> None:
        """`identity`: for mutual TLS beneath the proof of the key."""
        self.sharing: Sharing | None = None
        #: Told of a revision's pod by the agent of its node: its address, and whether it serves.
        self.announced: Callable[[RevisionKey, str, bool], None] = lambda key, addr, serves: None
        self._settings = settings
        self._client = client
        self._dispatcher = dispatcher
        self._identity = identity
        self._rpc: Rpc | None = None
        self._informer: Informer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self) -> None:
        settings = self._settings
        key = await shared_key(self._client, settings.namespace)
        if key is None:
            return
        rpc = Rpc(settings.pod_ip, key, identity=self._identity)
        try:
            addr = await rpc.listen(settings.pod_ip, settings.peer_port)
        except OSError as error:
            log.warning(
                "other activators can't speak to this one on port %d (%s): slots are divided by position",
                settings.peer_port,
                error,
            )
            await rpc.close()
            return
        self._rpc = rpc
        rpc.handle(ModInstance, self._instances)
        port = int(addr.rpartition(":")[2])
        self.sharing = Sharing(rpc, port, self._dispatcher.parts, self._dispatcher.drain)
        self._dispatcher.sharing = self.sharing
        self._informer = Informer(
            self._client,
            ENDPOINTS,
            settings.namespace,
            fields=f"metadata.name={ACTIVATORS}",
            on_change=self._changed,
        )
        self._informer.start()

    async def meet(self) -> None:
        if self.sharing is None or self._informer is None:
            return
        await self._informer.synced.wait()
        peers = self.sharing.peers
        await peers.meet()
        runs = (("greeting other activators", peers.run), ("sharing slots", self.sharing.run))
        self._tasks = [asyncio.create_task(kept_up(what, run)) for what, run in runs]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._informer is not None:
            await self._informer.stop()
        if self._rpc is not None:
            await self._rpc.close()

    def _instances(self, message: ModInstance, _: Caller) -> ModInstanceReply:
        for instance in message.instances:
            self.announced(message.revision, instance.addr, instance.state == "ready")
        return ModInstanceReply(home=False)

    def _changed(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        assert self.sharing is not None
        subsets = (new or {}).get("subsets") or ()
        fields = ("addresses", "notReadyAddresses")
        self.sharing.peers.told(
            address["ip"] for subset in subsets for field in fields for address in subset.get(field) or ()
        )
