"""Which prefill instances a group has: the home tells each decode instance that asks, as soon as the answer changes.

That takes no slot and is no demand: decode dials them before a request needs them, also while they load, and lets go
of those that are no longer among them. Who isn't the home of the group, or doesn't know yet what runs, says that it
doesn't know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b

from activator_replacement.routes import Routes
from kserve_ext.core.ids import RevisionKey
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.wire.messages import PrefillPeer, PrefillPeers, WatchPrefill

MARGIN_S = 0.05  # for the answer's way to the caller
LOOK_AGAIN_S = 0.1
NOT_KNOWN = PrefillPeers("")

PeersOf = Callable[[RevisionKey], tuple[PrefillPeer, ...] | None]


class PeerWatches:
    """The rpc handler of WatchPrefill. `peers_of`: a revision's instances; None: not known."""

    def __init__(self, rpc: Rpc, routes: Routes, peers_of: PeersOf) -> None:
        self._routes = routes
        self._peers_of = peers_of
        #: by group, and until when it is the answer for all who ask
        self._said: dict[str, tuple[float, PrefillPeers]] = {}
        rpc.handle(WatchPrefill, self.watch)

    async def watch(self, message: WatchPrefill, caller: Caller) -> PrefillPeers:
        loop = asyncio.get_running_loop()
        while True:
            answer = self._peers(message.group, loop.time())
            late = loop.time() + LOOK_AGAIN_S > caller.expires - MARGIN_S
            if late or not answer.tag or answer.tag != message.tag:
                return answer
            await asyncio.sleep(LOOK_AGAIN_S)

    def _peers(self, group: str, now: float) -> PrefillPeers:
        until, said = self._said.get(group, (now, NOT_KNOWN))
        if now < until:
            return said
        revision = self._routes.prefill_of(group)
        found = self._peers_of(revision.key) if revision is not None else None
        if found is None:
            self._said.pop(group, None)
            return NOT_KNOWN
        answer = PrefillPeers(blake2b(repr(found).encode(), digest_size=8).hexdigest(), found)
        self._said[group] = now + LOOK_AGAIN_S / 2, answer
        return answer
