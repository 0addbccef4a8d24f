"""The Dispatch function as home: carries out core/dispatch/home.py for the revisions whose home the view makes it.

Says which homes are here, gives them what is heard, and feeds each outcome back. What goes out is its own idea each:
questions to nodes and shards (questions.py), Grants (granting.py), placements (placing.py), and the store's copy
(copies.py). Shards that are this very process are called in it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator

from activator_replacement.accounts import demand_facts
from activator_replacement.copies import Copies
from activator_replacement.dispatch import Dispatcher
from activator_replacement.ghosts import Ghosts
from activator_replacement.granting import Granting
from activator_replacement.outward import Outward
from activator_replacement.placing import Placing
from activator_replacement.questions import Questions
from activator_replacement.recording import HomeHistory
from activator_replacement.routes import Routes
from kserve_ext.core import rendezvous
from kserve_ext.core.dispatch.authority import Authority
from kserve_ext.core.dispatch.facts import (
    AskNode,
    Instruction,
    Place,
    Remember,
    Retake,
    SendGrant,
    StopInstance,
)
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.dispatch.lag import Lag
from kserve_ext.core.dispatch.shard import AT_ONCE, batched
from kserve_ext.core.dispatch.take_over import Leavers
from kserve_ext.core.facts import Revision, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import wall_time
from kserve_ext.store import Store
from kserve_ext.wire import messages as m

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 1.0
STOP_TIMEOUT_S = 1.0
IDLE_TICKS = 10  # a home at zero is ticked every so many ticks; they take turns
FRESH_S = 30.0
STRANGER_S = 5.0  # the store's watch may be so far behind the node that tells of a new revision
MOST_STRANGERS = 1000


class Homes:
    """All homes of this Dispatch function."""

    def __init__(
        self, rpc: Rpc, membership: Membership, store: Store, routes: Routes, dispatcher: Dispatcher
    ) -> None:
        self.me = membership.me
        self.rpc = rpc
        self.membership = membership
        self.store = store
        self.routes = routes
        self.dispatcher = dispatcher
        self.loop = asyncio.get_running_loop()
        self.homes: dict[str, Home] = {}
        self._random = random.Random(membership.member.incarnation)
        self._members: dict[FunctionID, int] = {}
        self._nodes: set[NodeID] = set()
        self._owners = rendezvous.Owners[FunctionID]()
        self._ghosts = Ghosts(rpc, membership, self._ended)
        self.copies = Copies(store, lambda key: self.of_revision(key) is not None)
        #: homes that have had an event since they last were idle: ticked every time
        self._awake: dict[str, None] = {}
        self._leavers = Leavers()
        self._authority = Authority()
        self._lag = Lag()
        self._acted = True
        membership.on_confirmed(self._authority.member)
        self._recording = HomeHistory(rpc.history)
        outward = Outward(rpc, membership, self.homes, self._carry)
        self._questions = Questions(outward)
        self._granting = Granting(outward)
        self._placing = Placing(outward)
        #: revisions that nodes tell of and the store doesn't know (any more), and since when
        self._strangers: dict[RevisionKey, float] = {}
        self._ticks = 0
        rpc.handle(m.Coordinate, self.coordinate)
        rpc.handle(m.ModInstance, self.mod_instance)
        rpc.handle(m.Recall, self.recall)

    def home_of(self, home_key: str) -> FunctionID | None:
        return self._owners.of(home_key)

    # --- the view and the revisions

    def view(self, view: View) -> None:
        now = self.loop.time()
        members = {FunctionID(x.id): x.incarnation for x in view.of("dispatch")}
        nodes = {NodeID(x.id) for x in view.of("node")}
        self._placing.view(view)
        self._authority.view(view.epoch)
        self._ghosts.view(view, now)
        self._leavers.view(nodes, view.left, now)
        if (members, nodes) != (self._members, self._nodes):
            self._members, self._nodes = members, nodes
            self._owners.change(members)
            self._divide(now)
        self._ghosts.ask(now)

    def _divide(self, now: float) -> None:
        """Which homes are ours, among these shards and nodes."""
        for home_key in [k for k in self.homes if self.home_of(k) != self.me]:
            log.info("no longer the home of %s: it is %s", home_key, self.home_of(home_key))
            gone = self.homes.pop(home_key).revisions
            for key in gone:
                self.copies.forget_status(key)
            self._recording.left(gone)
        for home_key, home in list(self.homes.items()):
            self._carry(
                home_key,
                home.view(self._nodes, self._members, *self._lately(now)),
            )
        for revision in list(self.routes.revisions.values()):
            self.revision(revision.key, revision, created=False)

    def _lately(self, now: float) -> tuple[Iterable[FunctionID], float, set[NodeID], set[FunctionID]]:
        """The rest of what a home is told of a view: who has left it lately."""
        return self._ghosts.left, now, self._leavers.away(now), self._ghosts.seen

    def _ended(self, shard: FunctionID) -> None:
        for home_key, home in list(self.homes.items()):
            self._carry(home_key, home.ended(shard, self.loop.time()))

    def revision(self, key: RevisionKey, revision: Revision | None, *, created: bool) -> None:
        """A revision came (`created`: just now, so it has no instance anywhere) or went."""
        now = self.loop.time()
        self._strangers.pop(key, None)
        if revision is None:
            self.copies.forget_status(key)
            for home_key, home in list(self.homes.items()):
                if key in home.revisions:
                    self._carry(home_key, home.delete(key, now))
            return
        home_key = revision.home_key
        if self.home_of(home_key) != self.me:
            return
        found = self.homes.get(home_key)
        if found is None:
            found = self.homes[home_key] = Home(
                self.me, self.membership.view.epoch, self._new_id, self._authority, self._lag
            )
            self._carry(
                home_key,
                found.view(self._nodes, self._members, *self._lately(now)),
            )
        if key not in found.revisions:
            copies = self.copies.of(key)
            log.info("home of %s at epoch %d", key, found.term)
            # A clock that was set to another hour makes nothing young again.
            fresh = created or abs(wall_time() - revision.created_at) < FRESH_S
            self._carry(home_key, found.add(revision, fresh and not copies, copies, now))
            self._carry(home_key, found.route(self.routes.routed, now))

    def routed(self, key: RevisionKey) -> None:
        """A revision got or lost the traffic of its service."""
        revision = self.routes.revisions.get(key)
        home = self.homes.get(revision.home_key) if revision is not None else None
        if revision is not None and home is not None:
            self._carry(revision.home_key, home.route(self.routes.routed, self.loop.time()))

    def peers_of(self, key: RevisionKey) -> tuple[m.PrefillPeer, ...] | None:
        """The instances of a revision of ours that are or will be used, in order; None while that isn't known."""
        found = self.of_revision(key)
        if found is None or not found[1].revisions[key].open:
            return None
        known = found[1].revisions[key].fleet.listening(self.loop.time())
        return tuple(m.PrefillPeer(k.id, k.addr or k.listens, k.generation) for k in known)

    def generation_of(self, key: RevisionKey, instance: InstanceID) -> int:
        """Of an instance's process; 0 where that isn't known."""
        found = self.of_revision(key)
        known = found[1].revisions[key].fleet.known.get(instance) if found is not None else None
        return known.generation if known is not None else 0

    def place_of(self, home_key: str, instance: InstanceID) -> str:
        """The host that an instance of a home of ours is on, by its node's address; "" where that isn't known."""
        home = self.homes.get(home_key)
        for of_revision in home.revisions.values() if home is not None else ():
            known = of_revision.fleet.known.get(instance)
            if known is not None and known.node:
                return self._addr(known.node).rpartition(":")[0]
        return ""

    def prefill_work(self, key: RevisionKey, arrived: int, queued: int, velocity: float) -> None:
        found = self.of_revision(key)
        if found is not None:
            self._carry(found[0], found[1].prefill(key, arrived, queued, velocity, self.loop.time()))

    def decode_work(self, home_key: str, work: m.Decoded) -> None:
        home = self.homes.get(home_key)
        if home is not None:
            home.decoded(work.instance, work.generated, work.occupancy, work.span_s)

    def tick(self, late_s: float = 0.0) -> None:
        for _ in self.ticks(late_s):
            pass

    def ticks(self, late_s: float = 0.0) -> Iterator[None]:
        """What has become due, some homes at a time. `late_s`: so much later than it was due."""
        now = self.loop.time()
        self._ticks += 1
        self._look_behind(late_s, now)
        self._ghosts.ask(now)
        acts = self._acts()
        self._ask_others(now)
        if not acts:
            return
        self.dispatcher.shard.renew(self.me, now)
        turn = list(self.homes)[self._ticks % IDLE_TICKS :: IDLE_TICKS]
        for keys in batched(list(self._awake | dict.fromkeys(turn)), AT_ONCE):
            self._tick(keys, self.loop.time())
            yield

    def _tick(self, home_keys: Iterable[str], now: float) -> None:
        for home_key in home_keys:
            home = self.homes.get(home_key)
            if home is None:
                self._awake.pop(home_key, None)
                continue
            self._carry(home_key, home.tick(now))
            self.copies.write_status(home, self.routes.revisions, now)
            if not home.revisions:
                del self.homes[home_key]
            if home.idle:
                self._awake.pop(home_key, None)

    def _look_behind(self, late_s: float, now: float) -> None:
        before = self._lag.behind
        asking = sum(home.asking for home in self.homes.values()) if self._lag.counts else 0
        self._lag.ticked(now - late_s, now, asking)
        if self._lag.behind and not before:
            log.warning(
                "this process is %.1f s behind: until it has caught up its homes start and stop nothing, but a first "
                "instance; let it have more Dispatch functions (galaxy up --dispatch 1:4)",
                late_s,
            )
        elif before and not self._lag.behind:
            log.warning("this process has caught up: its homes start and stop instances again")

    # --- whether we still are the home

    def _acts(self) -> bool:
        acts = self._authority.turns(self.loop.time())
        if acts != self._acted:
            self._acted = acts
            log.warning(
                "homes %s", "act again" if acts else "don't act until it is known that there is no other"
            )
        return acts

    def _ask_others(self, now: float) -> None:
        """The controller is asked by our reports; the others are where it doesn't answer."""

        def said(who: FunctionID) -> Callable[[m.Message | RpcError], None]:
            def done(reply: m.Message | RpcError) -> None:
                self._authority.answered(who, now, reply.epoch if isinstance(reply, m.RecallReply) else None)

            return done

        for other in self._authority.asks(self._members.keys() - {self.me}, now):
            nothing = m.Recall(0, self.me, self.membership.addr, ())
            self.rpc.call_soon(self._addr(other), nothing, said(other), ASK_TIMEOUT_S)

    def _acting(self, key: RevisionKey) -> tuple[str, Home] | None:
        """The home of a revision, if it is here and may act."""
        return self.of_revision(key) if self._acts() else None

    # --- rpc handlers

    def coordinate(self, message: m.Coordinate, caller: Caller) -> m.CoordinateReply:
        """Demands of shards to this home, or Grants of a home to this shard."""
        answers: list[m.Action] = []
        elsewhere: list[RevisionKey] = []
        for action in message.actions:
            match action:
                case m.Demand():
                    found = self._acting(action.revision)
                    if found is None:
                        elsewhere.append(action.revision)
                        continue
                    home_key, home = found
                    facts = demand_facts(action)
                    grant, out = home.demand(message.sender, facts, self.loop.time())
                    if grant is not None:
                        answers.append(m.Grant(*grant))
                        if self._recording.on:
                            self._recording.granted(message.sender, grant)
                    self._carry(home_key, out)
                case m.Grant():
                    demand = self.dispatcher.pushed(action)
                    if demand is not None:
                        answers.append(demand)
                case m.Broken():
                    found = self._acting(action.revision)
                    if found is not None:
                        out = found[1].broken(action.revision, action.instance, self.loop.time())
                        self._carry(found[0], out)
                case m.RoomFor():
                    elsewhere += self._room_for(action)
                case m.MakeRoom():
                    answers.append(self._make_room(action))
                case m.Room() | m.MadeRoom():
                    pass  # to Schedule functions
        return m.CoordinateReply(tuple(answers), self.membership.view.epoch, tuple(elsewhere))

    def _room_for(self, action: m.RoomFor) -> tuple[RevisionKey, ...]:
        """Those of its revisions for which it isn't needed: all or none."""
        found = self._acting(action.revisions[0]) if action.revisions else None
        if found is None:
            return action.revisions
        home_key, home = found
        wanted, out = home.room_for(action.revisions, action.function, self.loop.time())
        self._carry(home_key, out)
        return () if wanted else action.revisions

    def _make_room(self, action: m.MakeRoom) -> m.MadeRoom:
        found = self._acting(action.victim)
        given = 0
        if found is not None:
            home_key, home = found
            given, out = home.make_room(
                action.victim, action.node, action.count, action.priority, action.reason, self.loop.time()
            )
            log.info(
                "%s: %d of %d of %s go on %s", action.reason, given, action.count, action.victim, action.node
            )
            self._carry(home_key, out)
        return m.MadeRoom(action.victim, action.node, given)

    def mod_instance(self, message: m.ModInstance, caller: Caller) -> m.ModInstanceReply:
        epoch = self.membership.view.epoch
        found = self._acting(message.revision)
        unwanted: tuple[InstanceID, ...] = ()
        self.dispatcher.announced(message.revision, message.instances)  # first: requests may wait for it here
        if found is not None:
            home_key, home = found
            unwanted, out = home.observed(
                message.revision, message.node, message.instances, message.full, self.loop.time()
            )
            self._carry(home_key, out)
        elif self._acts() and self._nobodys(message.revision):
            return m.ModInstanceReply(True, tuple(i.id for i in message.instances), epoch)
        return m.ModInstanceReply(found is not None, unwanted, epoch)

    def _nobodys(self, key: RevisionKey) -> bool:
        """It was deleted and its former home has forgotten it; not just that the store's watch is behind."""
        if not self.routes.loaded or key in self.routes.revisions:
            return False
        now = self.loop.time()
        since = self._strangers.setdefault(key, now)
        if len(self._strangers) > MOST_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        return now - since >= STRANGER_S

    def recall(self, message: m.Recall, caller: Caller) -> m.RecallReply:
        demands = self.dispatcher.recalled(message.epoch, message.revisions)
        return m.RecallReply(epoch=self.membership.view.epoch, demands=demands)

    # --- carrying out

    def _carry(self, home_key: str, instructions: Iterable[Instruction]) -> None:
        """Whatever happens to a home comes by here, with what follows from it."""
        self._awake[home_key] = None
        found = self.homes.get(home_key)
        if found is not None and found.recalling:
            self._questions.to_shards(home_key)
        if self._recording.on:
            instructions = list(instructions)
            self._recording.carried(self.homes.get(home_key), instructions)
        for i in instructions:
            match i:
                case SendGrant():
                    self._granting.push(home_key, i)
                case Place():
                    self._placing.place(home_key, i)
                case StopInstance():
                    self._stop(i)
                case AskNode():
                    self._questions.to_node(home_key, i)
                case Remember():
                    self.copies.remember(i)
                case Retake():
                    home = self.homes.get(home_key)
                    if home is not None and i.term <= self.membership.view.epoch:
                        self._carry(home_key, home.retake(self.membership.view.epoch, self.loop.time()))

    def _stop(self, i: StopInstance) -> None:
        epoch = self.membership.view.epoch
        message = m.Stop(i.instance, epoch, self.me, i.drain_s, i.reason)
        self.rpc.call_soon(self._addr(i.node), message, lambda reply: None, STOP_TIMEOUT_S)

    # --- inside

    def of_revision(self, key: RevisionKey) -> tuple[str, Home] | None:
        revision = self.routes.revisions.get(key)
        if revision is not None:
            home = self.homes.get(revision.home_key)
            return (revision.home_key, home) if home is not None and key in home.revisions else None
        return next(((k, h) for k, h in self.homes.items() if key in h.revisions), None)

    def _addr(self, member: str) -> str:
        return self.membership.addr_of(member)

    def _new_id(self, revision: str) -> InstanceID:
        return InstanceID(f"{revision.rpartition('/')[2]}-{self._random.getrandbits(32):08x}")
