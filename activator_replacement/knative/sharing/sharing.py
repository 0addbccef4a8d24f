"""Carries out core/sharing for every revision with a limit: what activators say to each other about slots.

Dispatch tells when a request finds no slot or one gets free, discovery which pods and activators there are, peers.py
who can be reached. What follows goes out in the same turn of the loop, all that is for one activator together.
Nothing here is on a request's way as long as its own activator has a slot for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from time import monotonic, time_ns
from typing import Final

from activator_replacement.accounts import demand_facts, grant_facts
from activator_replacement.knative.dispatcher import Figures, Part
from activator_replacement.knative.sharing.homes import ANSWER_S, Homes, Shared
from activator_replacement.knative.sharing.peers import Peers
from kserve_ext.core import rendezvous
from kserve_ext.core.dispatch import facts
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.core.sharing.own import own_slots
from kserve_ext.core.sharing.shard import SharingShard
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.wire import messages as m

TICK_S: Final = 0.1


class Sharing:
    """`drain`: held requests of a part may have slots now."""

    def __init__(
        self, rpc: Rpc, port: int, parts: dict[RevisionKey, Part], drain: Callable[[Part], None]
    ) -> None:
        self._rpc = rpc
        self._drain_part = drain
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._shared: dict[RevisionKey, Shared] = {}
        #: Those with something to do as time goes by.
        self._awake: dict[RevisionKey, None] = {}
        #: Those that may have something to say.
        self._speaking: dict[RevisionKey, None] = {}
        self._flush_at: asyncio.Handle | None = None
        self.peers = Peers(rpc, port, time_ns(), self._peers_changed, self._ended)
        self.me = self.peers.me
        self._homes = Homes(rpc, self.peers, self._awake, self._view)
        rpc.handle(m.Coordinate, self._coordinate)
        rpc.handle(m.Recall, self._recall)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tick(monotonic())

    # --- what Dispatch tells

    def revision(self, part: Part) -> None:
        """New: it has a shard from now on."""
        shard = part.shard = SharingShard(part.facts.key, part.activation, time_ns())
        self._shared[part.facts.key] = Shared(part, shard)

    def forget(self, key: RevisionKey) -> None:
        shared = self._shared.pop(key, None)
        self._awake.pop(key, None)
        if shared is not None:
            shared.home = None
            self._homes.carry(shared)

    def listed(self, key: RevisionKey, hosts: Iterable[str]) -> None:
        """Whom its traffic goes to: activators, or its pods, whom nobody here knows as activators."""
        shared = self._shared.get(key)
        if shared is not None:
            shared.hosts = tuple(sorted({FunctionID(host) for host in hosts}))
            self._view(shared)

    def changed(self, part: Part) -> None:
        """Other pods answer."""
        shared = self._shared.get(part.facts.key)
        if shared is not None:
            self._view(shared)

    def wants(self, part: Part) -> None:
        """A request is held."""
        shared = self._shared.get(part.facts.key)
        if shared is not None and part.activation.pods and shared.shard.home is not None:
            shared.shard.wants(monotonic())
            self._wake(shared)

    def freed(self, part: Part) -> None:
        """A slot got free that isn't one from here any more, or that others wait for."""
        part.activation.returned = False
        shared = self._shared.get(part.facts.key)
        if shared is not None:
            shared.shard.freed()
            self._wake(shared)

    def lapsed(self, part: Part, now: float) -> None:
        """Leases have ended: call it before anything else is asked of the activation."""
        shared = self._shared.get(part.facts.key)
        if shared is not None:
            shared.shard.tick(now)

    @property
    def others(self) -> list[str]:
        """The activators that it shares slots with."""
        return sorted(self.peers.alive.keys() - {self.me})

    def figures(self, key: RevisionKey) -> Figures:
        shared = self._shared.get(key)
        if shared is None or shared.shard.grants is None:
            return Figures("", 0, 0)
        home = shared.home
        leased = sum(shared.shard.grants.values())
        return Figures(shared.shard.home or "", leased, home.lent if home is not None else 0)

    # --- what there is

    def _peers_changed(self) -> None:
        for shared in list(self._shared.values()):
            self._view(shared)

    def _ended(self, peer: FunctionID) -> None:
        now = monotonic()
        for shared in self._shared.values():
            shared.shard.gone(peer, now)

    def _view(self, shared: Shared) -> None:
        now = monotonic()
        part, shard, alive = shared.part, shared.shard, self.peers.alive
        if any(host in alive for host in shared.hosts):
            shared.listed = shared.hosts
        pods = [InstanceID(pod) for pod in part.activation.pods]
        ours = [activator for activator in shared.listed if activator in alive]
        alone = len(alive) == 1 and shard.grants is None
        by_position = alone or part.activation.by_service
        home = None if by_position else rendezvous.owner(part.facts.key, ours)
        own = {} if alone else own_slots(pods, part.facts.concurrency, shared.listed, ours)
        shard.view(home, own.get(self.me, {}), now)
        if home != self.me:
            shared.home = None
        elif shared.home is not None:
            shared.home.view(pods, own, alive, now)
            self._homes.carry(shared)
        self._drain(shared)

    def _drain(self, shared: Shared) -> None:
        part = shared.part
        if self._parts.get(part.facts.key) is not part:
            return
        self._drain_part(part)
        if part.activation.held and shared.shard.silent(monotonic()):  # since before there was a pod
            self.wants(part)
        elif not shared.shard.idle:
            self._wake(shared)

    def _tick(self, now: float) -> None:
        for key in list(self._awake):
            shared = self._shared.get(key)
            if shared is None:
                continue
            home = shared.home
            shared.shard.tick(now)
            if home is not None:
                home.tick(now)
                if home.over(now):
                    shared.home = None
                elif home.alone and len(self.peers.alive) == 1:
                    shared.shard.release(now)
                    self._view(shared)
                self._homes.carry(shared)
            self._drain(shared)
            if shared.shard.idle and shared.home is None:
                self._awake.pop(key, None)
        if self._awake:
            self._speaking.update(self._awake)
            self._flush()

    def _wake(self, shared: Shared) -> None:
        key = shared.part.facts.key
        self._awake[key] = None
        self._speaking[key] = None
        if self._flush_at is None:
            self._flush_at = self._loop.call_soon(self._flush)

    # --- this activator as a shard

    def _flush(self) -> None:
        """Every Demand that is due, one message a home."""
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        now, later = monotonic(), float("inf")
        by_home: dict[FunctionID, list[facts.Demand]] = {}
        for key in list(self._speaking):
            shared = self._shared.get(key)
            due = shared.shard.due(now) if shared is not None else float("inf")
            if shared is not None and due <= now and shared.shard.home is not None:
                by_home.setdefault(shared.shard.home, []).append(shared.shard.demand(now))
            elif due < now + TICK_S:
                later = min(later, due)
                continue
            del self._speaking[key]
        for home, demands in by_home.items():
            actions = tuple(m.Demand(*demand) for demand in demands)
            message = m.Coordinate(self.me, "", 0, actions)
            self._rpc.call_soon(self.peers.addr(home), message, self._heard(home, demands), ANSWER_S)
        if later < float("inf"):
            self._flush_at = self._loop.call_later(later - now, self._flush)

    def _heard(self, home: FunctionID, demands: list[facts.Demand]) -> Callable[[m.Message | RpcError], None]:
        def done(reply: m.Message | RpcError) -> None:
            now = monotonic()
            actions = reply.actions if isinstance(reply, m.CoordinateReply) else ()
            grants = {action.revision: action for action in actions if isinstance(action, m.Grant)}
            for demand in demands:
                shared = self._shared.get(demand.revision)
                if shared is None or shared.shard.incarnation != demand.incarnation:
                    continue
                grant = grants.get(demand.revision)
                if grant is None:
                    shared.shard.unanswered(demand.seq, now)
                else:
                    shared.shard.grant(home, grant_facts(grant), now)
                    shared.shard.answered(demand.seq, now)
                self._drain(shared)
                self._wake(shared)

        return done

    def _recall(self, message: m.Recall, caller: Caller) -> m.RecallReply:
        now = monotonic()
        demands = []
        for shared in self._known(message.revisions):
            demands.append(m.Demand(*shared.shard.recalled(FunctionID(caller.name), now)))
            self._wake(shared)
        return m.RecallReply(demands=tuple(demands))

    def _known(self, keys: Iterable[RevisionKey]) -> Iterator[Shared]:
        return (shared for key in keys if (shared := self._shared.get(key)) is not None)

    def _coordinate(self, message: m.Coordinate, caller: Caller) -> m.CoordinateReply:
        """Demands to this home, or Grants to this shard."""
        now, sender = monotonic(), FunctionID(caller.name)
        answers: list[m.Action] = []
        elsewhere: list[RevisionKey] = []
        for action in message.actions:
            if isinstance(action, m.Demand):
                shared = self._shared.get(action.revision)
                home = self._homes.of(shared, now) if shared is not None else None
                if shared is None or home is None or sender not in self.peers.alive:
                    elsewhere.append(action.revision)
                    continue
                grant = home.demand(sender, demand_facts(action), now)
                if grant is not None:
                    answers.append(m.Grant(*grant))
                self._homes.carry(shared)
            elif isinstance(action, m.Grant):
                for shared in self._known((action.revision,)):
                    shared.shard.grant(sender, grant_facts(action), now)
                    self._drain(shared)
                    answers.append(m.Demand(*shared.shard.state(now)))
                    self._wake(shared)
        return m.CoordinateReply(tuple(answers), 0, tuple(elsewhere))
