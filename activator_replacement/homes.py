"""The Dispatch function as home: carries out core/home.py for the revisions whose home the view makes it.

Calls Schedule functions, nodes and shards for its homes and feeds each outcome back; keeps the store's copy behind
(where instances are, and what a revision's status is). Shards that are this very process are called in it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable

import msgspec

from activator_replacement.dispatch import Dispatcher
from activator_replacement.routes import Routes
from kserve_ext.core import home_facts, rendezvous
from kserve_ext.core.facts import Mark, Revision, View
from kserve_ext.core.home import Home
from kserve_ext.core.home_facts import (
    LEASE_TTL_S,
    AskNode,
    Instruction,
    Outcome,
    Place,
    Remember,
    Retake,
    SendGrant,
    StopInstance,
)
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.revision_home import RevisionHome
from kserve_ext.core.take_over import Copy
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import wall_time
from kserve_ext.store import Store
from kserve_ext.wire import messages as m

log = logging.getLogger(__name__)

SHARD_TIMEOUT_S = 1.0
NODE_TIMEOUT_S = 1.0
PLACE_TIMEOUT_S = 10.0
STATUS_S = 0.1
IDLE_TICKS = 10  # a home at zero is ticked every so many ticks
FRESH_S = 30.0


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
        self._left: dict[FunctionID, float] = {}
        self._copies: dict[RevisionKey, dict[InstanceID, Copy]] = {}
        self._recalling: set[tuple[str, FunctionID]] = set()
        self._status: dict[RevisionKey, tuple[dict[str, object], float]] = {}
        self._ticks = 0
        #: roomiest Schedule function first is not known here: taken in rendezvous order, the failed ones last
        self._failed_at: dict[FunctionID, float] = {}
        rpc.handle(m.Coordinate, self.coordinate)
        rpc.handle(m.ModInstance, self.mod_instance)
        rpc.handle(m.Recall, self.recall)
        store.watch("instances/", self._all_copies, self._copy_changed)

    def home_of(self, home_key: str) -> FunctionID | None:
        return rendezvous.owner(home_key, self._members)

    # --- the view and the revisions

    def view(self, view: View) -> None:
        now = self.loop.time()
        members = {FunctionID(x.id): x.incarnation for x in view.of("dispatch")}
        for gone in self._members.keys() - members.keys():
            self._left[gone] = now
        self._left = {f: t for f, t in self._left.items() if f not in members and now - t < LEASE_TTL_S}
        self._members = members
        nodes = {NodeID(x.id) for x in view.of("node")}
        for home_key in [k for k in self.homes if self.home_of(k) != self.me]:
            log.info("no longer the home of %s: it is %s", home_key, self.home_of(home_key))
            del self.homes[home_key]
        for home_key, home in list(self.homes.items()):
            self._carry(home_key, home.view(nodes, members, self._left, now))
        for revision in list(self.routes.revisions.values()):
            self.revision(revision.key, revision, created=False)
        self._recall_shards()

    def revision(self, key: RevisionKey, revision: Revision | None, *, created: bool) -> None:
        """A revision came (`created`: just now, so it has no instance anywhere) or went."""
        now = self.loop.time()
        if revision is None:
            self._status.pop(key, None)
            for home_key, home in list(self.homes.items()):
                if key in home.revisions:
                    self._carry(home_key, home.delete(key, now))
            return
        home_key = revision.home_key
        if self.home_of(home_key) != self.me:
            return
        found = self.homes.get(home_key)
        if found is None:
            found = self.homes[home_key] = Home(self.me, self.membership.view.epoch, self._new_id)
            nodes = {NodeID(x.id) for x in self.membership.view.of("node")}
            self._carry(home_key, found.view(nodes, self._members, self._left, now))
        if key not in found.revisions:
            copies = tuple(self._copies.get(key, {}).values())
            log.info("home of %s at epoch %d", key, found.term)
            fresh = created or wall_time() - revision.created_at < FRESH_S
            self._carry(home_key, found.add(revision, fresh and not copies, copies, now))
            self._recall_shards()

    def prefill_of(self, group: str) -> Revision | None:
        """The newest prefill revision of a group."""
        found = [r for r in self.routes.revisions.values() if r.group == group and r.role == "prefill"]
        return max(found, key=lambda r: (r.created_at, r.generation), default=None)

    def tick(self) -> None:
        now = self.loop.time()
        self._ticks += 1
        for home_key, home in list(self.homes.items()):
            if home.idle and self._ticks % IDLE_TICKS:
                continue
            self._carry(home_key, home.tick(now))
            self._write_status(home, now)
            if not home.revisions:
                del self.homes[home_key]
        self._recall_shards()

    # --- rpc handlers

    def coordinate(self, message: m.Coordinate, caller: Caller) -> m.CoordinateReply:
        """Demands of shards to this home, or Grants of a home to this shard."""
        answers: list[m.Action] = []
        elsewhere: list[RevisionKey] = []
        for action in message.actions:
            match action:
                case m.Demand():
                    found = self._of_revision(action.revision)
                    if found is None:
                        elsewhere.append(action.revision)
                        continue
                    home_key, home = found
                    facts = home_facts.Demand(*msgspec.structs.astuple(action))
                    grant, out = home.demand(message.sender, facts, self.loop.time())
                    if grant is not None:
                        answers.append(m.Grant(*grant))
                    self._carry(home_key, out)
                case m.Grant():
                    demand = self.dispatcher.granted(action)
                    if demand is not None:
                        answers.append(demand)
                case m.Broken():
                    found = self._of_revision(action.revision)
                    if found is not None:
                        out = found[1].broken(action.revision, action.instance, self.loop.time())
                        self._carry(found[0], out)
                case m.Room():
                    pass  # between Schedule functions
        return m.CoordinateReply(tuple(answers), self.membership.view.epoch, tuple(elsewhere))

    def mod_instance(self, message: m.ModInstance, caller: Caller) -> m.ModInstanceReply:
        epoch = self.membership.view.epoch
        found = self._of_revision(message.revision)
        unwanted: tuple[InstanceID, ...] = ()
        if found is not None:
            home_key, home = found
            unwanted, out = home.observed(
                message.revision, message.node, message.instances, message.full, self.loop.time()
            )
            self._carry(home_key, out)
        elif self.routes.loaded and message.revision not in self.routes.revisions:
            # Nobody's: the revision was deleted, and its former home has forgotten it.
            unwanted = tuple(i.id for i in message.instances)
            return m.ModInstanceReply(True, unwanted, epoch)
        self.dispatcher.announced(message.revision, message.instances)
        return m.ModInstanceReply(found is not None, unwanted, epoch)

    def recall(self, message: m.Recall, caller: Caller) -> m.RecallReply:
        demands = self.dispatcher.recalled(message.epoch, message.revisions)
        return m.RecallReply(epoch=self.membership.view.epoch, demands=demands)

    # --- carrying out

    def _carry(self, home_key: str, instructions: Iterable[Instruction]) -> None:
        for i in instructions:
            match i:
                case SendGrant():
                    self._send_grant(home_key, i)
                case Place():
                    self._place(home_key, i, self._schedulers(home_key))
                case StopInstance():
                    self._stop(i)
                case AskNode():
                    self._ask_node(home_key, i)
                case Remember():
                    self._remember(i)
                case Retake():
                    home = self.homes.get(home_key)
                    if home is not None and i.term <= self.membership.view.epoch:
                        self._carry(home_key, home.retake(self.membership.view.epoch, self.loop.time()))
                        self._recall_shards()

    def _send_grant(self, home_key: str, i: SendGrant) -> None:
        def done(reply: m.Message | RpcError) -> None:
            home = self.homes.get(home_key)
            if home is None or not isinstance(reply, m.CoordinateReply):
                return
            for action in reply.actions:
                if isinstance(action, m.Demand):
                    facts = home_facts.Demand(*msgspec.structs.astuple(action))
                    _, out = home.demand(i.shard, facts, self.loop.time())
                    self._carry(home_key, out)

        message = m.Coordinate(
            self.me, self.membership.addr, self.membership.view.epoch, (m.Grant(*i.grant),)
        )
        self._call(self._addr(i.shard), message, done, SHARD_TIMEOUT_S)

    def _place(self, home_key: str, i: Place, schedulers: list[FunctionID], tried: str = "") -> None:
        """Asks one Schedule function, and the next when the first can't be reached."""
        if not schedulers:
            self._placed(
                home_key, i, None, tried or "there is no Schedule function: see `galaxy status`", sent=False
            )
            return
        function, *others = schedulers
        message = m.Schedule(
            items=tuple(m.Item(revision, ids) for revision, ids in i.items),
            epoch=self.membership.view.epoch,
            home=self.me,
            home_addr=self.membership.addr,
            waiting=tuple(addr for shard in i.waiting if (addr := self._addr(shard))),
            gang=i.gang,
            marks=(Mark("decided", wall_time(), f"home {self.me}, via {function}"),),
        )

        def done(reply: m.Message | RpcError) -> None:
            if isinstance(reply, m.Placements):
                why = "" if not reply.stale else f"{function} knows a newer view"
                self._placed(home_key, i, reply, why, sent=True)
                return
            assert isinstance(reply, RpcError)
            self._failed_at[function] = self.loop.time()
            if reply.sent:
                self._placed(home_key, i, None, f"{function}: {reply}", sent=True)
            else:
                self._place(home_key, i, others, f"{function}: {reply}")

        self._call(self._addr(function), message, done, PLACE_TIMEOUT_S)

    def _schedulers(self, home_key: str) -> list[FunctionID]:
        """In the key's own order, so that homes spread; those that failed within the last second go last."""
        functions = [FunctionID(x.id) for x in self.membership.view.of("schedule")]
        ranked = rendezvous.ranked(home_key, functions)
        now = self.loop.time()
        return sorted(ranked, key=lambda f: now - self._failed_at.get(f, -1e9) < 1.0)

    def _placed(self, home_key: str, i: Place, reply: m.Placements | None, why: str, *, sent: bool) -> None:
        home = self.homes.get(home_key)
        if home is None:
            return
        by_id: dict[InstanceID, Outcome] = {}
        if reply is not None:
            by_id.update((p.instance, Outcome(p.instance, node=p.node)) for p in reply.placed)
            by_id.update(
                (r.instance, Outcome(r.instance, reason=r.reason, unknown=r.unknown)) for r in reply.refused
            )
        lost = NodeID("?") if reply is None and sent else NodeID("")
        outcomes: dict[RevisionKey, list[Outcome]] = {}
        for revision, ids in i.items:
            for instance in ids:
                outcome = by_id.get(instance) or Outcome(instance, reason=why or "not answered", unknown=lost)
                outcomes.setdefault(revision.key, []).append(outcome)
        self._carry(home_key, home.placed(outcomes, self.loop.time()))

    def _stop(self, i: StopInstance) -> None:
        epoch = self.membership.view.epoch
        message = m.Stop(i.instance, epoch, self.me, i.drain_s, i.reason)
        self._call(self._addr(i.node), message, lambda reply: None, NODE_TIMEOUT_S)

    def _ask_node(self, home_key: str, i: AskNode) -> None:
        home = self.homes.get(home_key)
        if home is None:
            return
        epoch = max(home.term, self.membership.view.epoch)
        message = m.Recall(epoch, self.me, self.membership.addr, (i.revision,))

        def done(reply: m.Message | RpcError) -> None:
            current = self.homes.get(home_key)
            if current is not None and isinstance(reply, m.RecallReply):
                out = current.node_says(i.revision, i.node, reply.instances, self.loop.time())
                self._carry(home_key, out)

        self._call(self._addr(i.node), message, done, NODE_TIMEOUT_S)

    def _recall_shards(self) -> None:
        """Asks shards that have yet to say what they use; one question at a time, until they answer."""
        for home_key, home in list(self.homes.items()):
            for shard, keys in home.silent_shards.items():
                if (home_key, shard) in self._recalling or not self._addr(shard):
                    continue
                self._recalling.add((home_key, shard))
                message = m.Recall(home.term, self.me, self.membership.addr, tuple(keys))
                self._call(
                    self._addr(shard), message, self._recall_answered(home_key, shard, keys), SHARD_TIMEOUT_S
                )

    def _recall_answered(
        self, home_key: str, shard: FunctionID, keys: list[RevisionKey]
    ) -> Callable[[m.Message | RpcError], None]:
        def done(reply: m.Message | RpcError) -> None:
            self._recalling.discard((home_key, shard))
            home = self.homes.get(home_key)
            if home is None or not isinstance(reply, m.RecallReply):
                return
            demands = [home_facts.Demand(*msgspec.structs.astuple(d)) for d in reply.demands]
            self._carry(home_key, home.recalled(shard, keys, demands, self.loop.time()))

        return done

    # --- the store's copy

    def _remember(self, i: Remember) -> None:
        key = f"instances/{i.revision}/{i.instance}"
        value = msgspec.msgpack.encode((i.node, i.addr)) if i.node else None
        self.store.put([(key, value)])

    def _all_copies(self, items: dict[str, bytes]) -> None:
        self._copies = {}
        for key, value in items.items():
            self._copy_changed(key, value)

    def _copy_changed(self, key: str, value: bytes | None) -> None:
        revision, _, name = key.partition("/")[2].rpartition("/")
        of_revision = self._copies.setdefault(RevisionKey(revision), {})
        instance = InstanceID(name)
        if value is None:
            of_revision.pop(instance, None)
        else:
            node, addr = msgspec.msgpack.decode(value, type=tuple[str, str])
            of_revision[instance] = Copy(instance, NodeID(node), addr)

    def _write_status(self, home: Home, now: float) -> None:
        for key, revision_home in home.revisions.items():
            facts = status_of(revision_home)
            before, at = self._status.get(key, ({}, 0.0))
            if facts != before and now - at >= STATUS_S and key in self.routes.revisions:
                self._status[key] = (facts, now)
                document = {**facts, "at": wall_time()}
                self.store.put([(f"status/{key}", msgspec.json.encode(document))])

    # --- inside

    def _of_revision(self, key: RevisionKey) -> tuple[str, Home] | None:
        revision = self.routes.revisions.get(key)
        if revision is not None:
            home = self.homes.get(revision.home_key)
            return (revision.home_key, home) if home is not None and key in home.revisions else None
        return next(((k, h) for k, h in self.homes.items() if key in h.revisions), None)

    def _addr(self, member: str) -> str:
        return self.membership.addr_of(member)

    def _call(
        self, addr: str, message: m.Message, done: Callable[[m.Message | RpcError], None], timeout_s: float
    ) -> None:
        self.rpc.call_soon(addr, message, done, timeout_s)

    def _new_id(self, revision: str) -> InstanceID:
        return InstanceID(f"{revision.rpartition('/')[2]}-{self._random.getrandbits(32):08x}")


def status_of(home: RevisionHome) -> dict[str, object]:
    """What the objects process reads under status/ (kserve_ext/api/rollout.py: Observed)."""
    fleet = home.fleet
    return {
        "desired": home.agreed,
        "ready": fleet.ready,
        "starting": max(0, fleet.wanted - fleet.ready),
        "failed": home.setbacks.count if home.setbacks.reason else 0,
        "reason": home.setbacks.reason if not fleet.ready else "",
        "permanent": home.failed,
        "phase": home.activity.phase,
        "held": home.held,
    }
