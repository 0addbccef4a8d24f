"""Which other activators are ours and can be reached: each greets all others every second.

Who they may be is told (the addresses of activator-service); an address where nobody speaks our protocol with our key
is one of Knative's own, or as good as one. An activator is known by its pod's address, its process by its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Final

from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.wire.messages import Greet, Greeted, Message

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
ANSWER_S: Final = 1.0
#: Who hasn't been heard for so long can't be reached.
SILENT_S: Final = 3.0
#: A stranger is greeted less and less often.
MOST_EVERY_S: Final = 30.0
#: Longest wait for the first answers of all.
FIRST_S: Final = 0.5


class Peers:
    def __init__(
        self,
        rpc: Rpc,
        port: int,
        incarnation: int,
        changed: Callable[[], None],
        ended: Callable[[FunctionID], None],
    ) -> None:
        """`changed`: others can be reached; `ended`: this one's process is no more."""
        self.me = FunctionID(rpc.name)
        #: Who can be reached, itself included, and since when its process runs.
        self.alive: dict[FunctionID, int] = {self.me: incarnation}
        self._rpc = rpc
        self._port = port
        self._incarnation = incarnation
        self._changed = changed
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._told: frozenset[FunctionID] = frozenset()
        self._heard_at: dict[FunctionID, float] = {}
        #: Strangers: when they are greeted next, and the wait after that.
        self._again: dict[FunctionID, tuple[float, float]] = {}
        self._asking: set[FunctionID] = set()
        self._answered = asyncio.Event()  # nobody is being asked
        rpc.handle(Greet, self._greeted_by)
        rpc.on_peer_lost(self._lost)

    def addr(self, peer: FunctionID) -> str:
        return f"{peer}:{self._port}"

    def told(self, hosts: Iterable[str]) -> None:
        """Where activators are."""
        self._told = frozenset(FunctionID(host) for host in hosts) - {self.me}
        self._again = {peer: when for peer, when in self._again.items() if peer in self._told}
        self._greet_all()

    async def meet(self) -> None:
        """Until everybody has answered or not, for a moment at most."""
        self._greet_all()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), FIRST_S)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            now = self._loop.time()
            silent = [peer for peer, at in self._heard_at.items() if now - at > SILENT_S]
            for peer in silent:
                self._forget(peer, "is silent")
            if silent:
                self._changed()
            self._greet_all()

    # --- inside

    def _greet_all(self) -> None:
        now = self._loop.time()
        for peer in sorted(self._told | self._heard_at.keys()):
            if peer in self._heard_at or now >= self._again.get(peer, (0.0, 0.0))[0]:
                self._greet(peer)
        if not self._asking:
            self._answered.set()

    def _greet(self, peer: FunctionID) -> None:
        if peer in self._asking:
            return
        self._asking.add(peer)
        self._answered.clear()

        def done(reply: Message | RpcError) -> None:
            self._asking.discard(peer)
            if not self._asking:
                self._answered.set()
            if isinstance(reply, Greeted):
                self._heard(peer, reply.incarnation)
                return
            assert isinstance(reply, RpcError)
            if peer not in self._heard_at:
                _, wait = self._again.get(peer, (0.0, EVERY_S / 2))
                wait = min(MOST_EVERY_S, 2 * wait)
                self._again[peer] = (self._loop.time() + wait, wait)
            elif reply.nobody:
                self._forget(peer, "has ended")
                self._ended(peer)
                self._changed()

        self._rpc.call_soon(self.addr(peer), Greet(self._incarnation), done, ANSWER_S)

    def _greeted_by(self, message: Greet, caller: Caller) -> Greeted:
        self._heard(FunctionID(caller.name), message.incarnation)
        return Greeted(self._incarnation)

    def _heard(self, peer: FunctionID, incarnation: int) -> None:
        if peer == self.me:
            return
        self._heard_at[peer] = self._loop.time()
        self._again.pop(peer, None)
        before = self.alive.get(peer)
        if before == incarnation:
            return
        self.alive[peer] = incarnation
        if before is None:
            log.info("shares slots with the activator at %s", peer)
        else:
            self._ended(peer)
        self._changed()

    def _lost(self, addr: str) -> None:
        peer = FunctionID(addr.rpartition(":")[0])
        if peer in self._heard_at:
            self._greet(peer)  # a process that has ended refuses

    def _forget(self, peer: FunctionID, why: str) -> None:
        log.info("the activator at %s %s: it counts as one of Knative's own", peer, why)
        del self._heard_at[peer]
        del self.alive[peer]
