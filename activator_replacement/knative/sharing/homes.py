"""This activator as the home of revisions: carries out core/sharing/home.py.

It says what the home has to say, Grants that nobody asked for and questions, and feeds the answers back. Another home
of the same revision may be at work elsewhere for a while: it has the slots of others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, time_ns
from typing import Final

from activator_replacement.accounts import demand_facts
from activator_replacement.knative.dispatcher import Part
from activator_replacement.knative.sharing.peers import Peers
from kserve_ext.core.dispatch import facts
from kserve_ext.core.ids import FunctionID, RevisionKey
from kserve_ext.core.sharing.home import SharingHome
from kserve_ext.core.sharing.shard import SharingShard
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.wire import messages as m

#: Longer than any answer takes, and shorter than a lease.
ANSWER_S: Final = 1.0
#: A member is asked so often at most, and has as long to answer.
RECALL_S: Final = 0.5


class Shared:
    """One revision with a limit."""

    __slots__ = ("asked", "home", "hosts", "listed", "part", "settle", "shard")

    def __init__(self, part: Part, shard: SharingShard) -> None:
        self.part = part
        self.shard = shard
        self.hosts: tuple[FunctionID, ...] = ()  # whom its traffic goes to
        self.listed: tuple[FunctionID, ...] = ()  # the activators that serve it, as last known
        self.home: SharingHome | None = None
        self.asked: dict[FunctionID, float] = {}  # when each was sent a Recall
        self.settle: asyncio.TimerHandle | None = None


class Homes:
    """`view`: tells a new home what there is; `awake`: revisions with something to do as time goes by."""

    def __init__(
        self, rpc: Rpc, peers: Peers, awake: dict[RevisionKey, None], view: Callable[[Shared], None]
    ) -> None:
        self._rpc = rpc
        self._peers = peers
        self._me = peers.me
        self._awake = awake
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._last_term = 0

    def of(self, shared: Shared, now: float) -> SharingHome | None:
        """The home of a revision, if it is here."""
        if shared.shard.home != self._me:
            return None
        if shared.home is None:
            self._last_term = max(self._last_term + 1, time_ns())
            key, concurrency = shared.part.facts.key, shared.part.facts.concurrency
            shared.home = SharingHome(key, self._me, concurrency, self._last_term, now)
            shared.asked = {}
            self._view(shared)
        return shared.home

    def carry(self, shared: Shared) -> None:
        """What the home has to say: Grants that nobody asked for, and questions."""
        home = shared.home
        if shared.settle is not None:
            shared.settle.cancel()
            shared.settle = None
        if home is None:
            return
        self._awake[shared.part.facts.key] = None
        now = monotonic()
        for member, grant in home.settled(now):
            self._push(shared, home, member, grant)
        if home.settle_at < float("inf"):
            shared.settle = self._loop.call_later(home.settle_at - now, self.carry, shared)
        for member in sorted(home.to_ask):
            if now >= shared.asked.get(member, 0.0) + RECALL_S:
                shared.asked[member] = now
                self._ask(shared, home, member)

    def _push(self, shared: Shared, home: SharingHome, member: FunctionID, grant: facts.Grant) -> None:
        def done(reply: m.Message | RpcError) -> None:
            if shared.home is not home or not isinstance(reply, m.CoordinateReply):
                return  # its own next Demand says it as well
            for action in reply.actions:
                if isinstance(action, m.Demand):
                    home.heard(member, demand_facts(action), monotonic())
            self.carry(shared)

        message = m.Coordinate(self._me, "", 0, (m.Grant(*grant),))
        self._rpc.call_soon(self._peers.addr(member), message, done, ANSWER_S)

    def _ask(self, shared: Shared, home: SharingHome, member: FunctionID) -> None:
        def done(reply: m.Message | RpcError) -> None:
            if shared.home is home and isinstance(reply, m.RecallReply):
                said = [demand_facts(demand) for demand in reply.demands]
                home.heard(member, said[0] if said else None, monotonic())
                self.carry(shared)

        message = m.Recall(0, self._me, "", (shared.part.facts.key,))
        self._rpc.call_soon(self._peers.addr(member), message, done, RECALL_S)
