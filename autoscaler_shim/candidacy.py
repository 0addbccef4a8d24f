"""Which controller leads, where there are several: the one that holds a lease in the state store.

The others answer who it is, so that members find it from any address that they know, and begin where it ended once
its lease lapses. What a leader does is controller.py's; that nobody acts under an old term is keeping.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from autoscaler_shim.keeping import VIEW_KEY, InTerm, Keeper, read
from kserve_ext.core.election import ElectionSpec
from kserve_ext.core.facts import View
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.store import Conflict, Store, Unavailable
from kserve_ext.store.elector import Elector
from kserve_ext.store.lease import LEASE_S, RENEW_S, RETRY_S, StoreLease, Term
from kserve_ext.wire import messages as m

log = logging.getLogger(__name__)

LEASE: Final = "controller"
#: The view is read so often, whoever leads.
FOLLOW_S: Final = 1.0

#: Leads with what was kept until it is cancelled.
Lead = Callable[[Keeper, Mapping[str, bytes]], Awaitable[None]]


class Candidacy:
    """Of this process, for as long as it runs."""

    def __init__(self, rpc: Rpc, addr: str, store: Store, lead: Lead) -> None:
        self.rpc = rpc
        self.addr = addr
        self.store = store
        self.lease = StoreLease(store, LEASE)
        spec = ElectionSpec(f"{rpc.name} at {addr}", LEASE_S, RENEW_S, RETRY_S)
        self.elector = Elector(self.lease, spec, self._turned, self._turned)
        self._lead = lead
        self._news = asyncio.Event()
        #: the newest view of anybody's term, as far as it is known here, in case the store loses it
        self._last: bytes | None = None

    async def run(self) -> None:
        self._stand_by()
        self.elector.start()
        following = asyncio.create_task(self._follow())
        try:
            while True:
                if self.elector.leading:
                    await self._term()
                    self._stand_by()
                else:
                    await self._news.wait()
                self._news.clear()
        finally:
            following.cancel()
            await self.elector.stop()

    def leader(self) -> str:
        """The address of whoever leads, "" while nobody is known to."""
        name, _, addr = self.elector.holder.partition(" at ")
        return "" if name == self.rpc.name else addr

    async def _follow(self) -> None:
        """What others publish. Late is early enough: members tell of what is newer, once they are asked."""
        while True:
            with contextlib.suppress(Unavailable):
                found = await self.store.scan(VIEW_KEY)
                if VIEW_KEY in found:
                    self._last = newest(self._last, found[VIEW_KEY][0])
            await asyncio.sleep(FOLLOW_S)

    # --- leading

    def _turned(self) -> None:
        self._news.set()

    async def _term(self) -> None:
        """Begins a term, and leads until the lease or the term is lost."""
        self._news.clear()
        term = asyncio.create_task(self._begin())
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait({term, news}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (term, news):
                task.cancel()
            ended, _ = await asyncio.gather(term, news, return_exceptions=True)
        if isinstance(ended, Exception):
            log.warning("this term ended: %s", ended, exc_info=_unforeseen(ended))
        self.elector.lapse()

    async def _begin(self) -> None:
        term = Term(self.lease)
        await term.begin(self.rpc.name)
        kept = await read(self.store, RENEW_S)  # or no term: what it would write takes the place of that
        found = kept.get(VIEW_KEY)
        kept = {**kept, VIEW_KEY: newest(found, self._last)}
        keeper = _Remembering(term, self.elector.lapse)
        keeper.lost = decode(kept[VIEW_KEY]).epoch > decode(found).epoch
        log.info("leads from epoch %d", decode(kept[VIEW_KEY]).epoch)
        try:
            await self._lead(keeper, kept)
        finally:
            keeper.close()
            self._last = newest(self._last, keeper.view)

    # --- standing by

    def _stand_by(self) -> None:
        """Every question is answered with who leads; the asker goes there."""
        rpc = self.rpc
        rpc.epoch = lambda: 0
        rpc.handle(m.Join, lambda message, caller: m.PublishView(View(), self.leader()))
        rpc.handle(m.Report, lambda message, caller: m.ReportReply(0, False, leader=self.leader()))
        rpc.handle(m.Leave, lambda message, caller: m.Ack(0))
        rpc.handle(m.Apply, lambda message, caller: m.ApplyReply(0, self._refusal()))
        rpc.handle(m.ModInstance, lambda message, caller: m.ModInstanceReply(home=False))
        rpc.handle(m.Describe, self._describe)

    def _refusal(self) -> str:
        leader = self.elector.holder
        return f"{self.rpc.name} is not the leader, it is {leader}" if leader else "no controller leads yet"

    def _describe(self, message: m.Describe, caller: Caller) -> m.Description:
        body = {
            "id": self.rpc.name,
            "kind": "controller",
            "standby": self._refusal(),
            "leader": self.leader(),
        }
        return m.Description(msgspec.json.encode(body))


class _Remembering(InTerm):
    """Keeps the last view at hand, too."""

    view: bytes | None = None

    def put(self, key: str, value: bytes) -> None:
        if key == VIEW_KEY:
            self.view = value
        super().put(key, value)


def decode(view: bytes | None) -> View:
    return msgspec.msgpack.decode(view, type=View) if view else View()


def newest(*views: bytes | None) -> bytes:
    """The one with the highest epoch."""
    return max((v or msgspec.msgpack.encode(View()) for v in views), key=lambda v: decode(v).epoch)


def _unforeseen(error: Exception) -> Exception | None:
    return None if isinstance(error, Conflict | Unavailable) else error
