"""The home's machine for one revision: demand of all shards in, one wish out, and the account of both.

It joins the parts that each have one idea: the instances (fleet.py), the slots (leases.py), how many it wants by
itself (goal.py), and failed starts (setbacks.py). fit() is told what the home agreed on, which in a group may be
another number. Until what runs is known (the take-over is *open*), it starts and stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from kserve_ext.core.dispatch import facts as home_facts
from kserve_ext.core.dispatch.choosing import chooses
from kserve_ext.core.dispatch.facts import (
    AskNode,
    Demand,
    Grant,
    Instruction,
    Outcome,
    Remember,
    SendGrant,
    StopInstance,
)
from kserve_ext.core.dispatch.fleet import ANY_NODE, NOWHERE, Change, Fleet, Known
from kserve_ext.core.dispatch.goal import Goal, Seen
from kserve_ext.core.dispatch.group import Wish
from kserve_ext.core.dispatch.lag import Lag
from kserve_ext.core.dispatch.leases import Account, Basis, Leases
from kserve_ext.core.dispatch.setbacks import SOON_S, Setbacks
from kserve_ext.core.dispatch.take_over import TakeOver
from kserve_ext.core.facts import Instance, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID

STOP_AGAIN_S = 2.0
ASK_AGAIN_S = 0.5
PUSH_AGAIN_S = 1.0
ANNOUNCED_S = 0.05  # a node's word to a shard that waits should be there by then
NOBODY: Final[list[InstanceID]] = []
HAND_BACK_S = 1.0  # for slots of one that is preempted: what is under way then ends while it drains


class RevisionHome:
    def __init__(
        self,
        me: FunctionID,
        revision: Revision,
        fresh: bool,
        new_id: Callable[[str], InstanceID],
        now: float,
        lag: Lag,
    ) -> None:
        """`fresh`: it never had an instance, so it gets its initial scale."""
        self.me, self.revision, self.fresh, self.lag = me, revision, fresh, lag
        self.new_id = new_id
        #: how many it wants by itself
        self.goal = Goal(revision, now)
        self.spec = self.goal.spec
        self.fleet = Fleet()
        self.leases = Leases(revision.concurrency, now)
        self.setbacks = Setbacks()
        #: when there first was no room for what is missing; None: nothing waits for room
        self.without_room_since: float | None = None
        self._nodes: set[NodeID] = set()
        #: shards choose among all instances, so that they are told of those too of which they have no slot
        self._named = bool(revision.concurrency) and chooses(revision)
        self._roster: list[InstanceID] = []
        #: for what slots were allotted last
        self._allotted: list[InstanceID] | None = None
        self._promised = NOBODY
        self._basis: Basis | None = None
        self.deleted = False
        #: what its group agreed on
        self.agreed = 0
        self._seq = 0
        self.term = 0
        self.take = TakeOver((), (), (), (), now)
        self._ask_at = now
        #: shards, in the view or lately in it, whose end would be told
        self.seen: frozenset[FunctionID] = frozenset()

    # --- take-over

    def take_over(self, term: int, take: TakeOver, now: float) -> None:
        """Under a new term: everything has to be asked."""
        self.term, self.take = term, take
        self.leases, self._allotted = Leases(self.revision.concurrency, now), None
        for known in self.fleet.known.values():
            known.inherited = True  # another home may have been here in between
        if self.revision.concurrency:
            lasts = home_facts.GONE_S if take.silent_shards else home_facts.LEASE_TTL_S
            self.leases.frozen_until = now + lasts
        self._freeze_for(take.ghosts | take.silent_shards, now)
        self._ask_at = now
        self._heard(now)

    def _freeze_for(self, shards: set[FunctionID], now: float) -> None:
        """One that is only paused still uses what it had; the end of its process would be told.

        It may stay in the view for long: while there is no controller, nobody leaves.
        """
        if self.revision.concurrency and shards & self.seen:
            self.leases.frozen_until = max(self.leases.frozen_until, now + home_facts.SEEN_TTL_S)

    @property
    def open(self) -> bool:
        return self.take.open

    def shard_answered(self, shard: FunctionID, now: float) -> None:
        self.take.silent_shards.discard(shard)
        self._heard(now)

    def shard_ended(self, shard: FunctionID, now: float) -> None:
        """Not if it is back: another process of its name has an account of its own."""
        self.leases.ended(shard)
        self.take.ghosts.discard(shard)
        self._heard(now)

    def _heard(self, now: float) -> None:
        """Somebody has answered, or time has passed: is everything known that can be?"""
        if self.take.slots_known:
            self.leases.frozen_until = min(self.leases.frozen_until, now)
        if not self.take.opens(now):
            return
        self.take.fill_in(self.fleet, now)
        self.goal.opens(self._seen_now, now, fresh=self.fresh)
        self.fresh = False
        self._burst(now)

    def view(self, nodes: set[NodeID], shards: Mapping[FunctionID, int], now: float) -> None:
        """Who is in the view; shards with their incarnations."""
        self.fleet.back(nodes)
        if nodes - self._nodes:
            self.setbacks.nodes_came(now)
        self._nodes = set(nodes)
        self._freeze_for(self.take.view(nodes, set(shards)), now)
        for shard, incarnation in shards.items():
            self.leases.void(shard, incarnation)
        for shard in self.leases.accounts:
            if shard not in shards:
                self.leases.left(shard, now)
        self._heard(now)

    # --- shards

    def demand(self, shard: FunctionID, demand: Demand, now: float) -> None:
        if demand.term == self.term:
            self.take.silent_shards.discard(shard)
        self.goal.demanded(demand)
        newer = self.leases.report(shard, demand, self.term, now)
        self._heard(now)
        if newer and self.open:
            if demand.held:
                self.setbacks.demanded(now)
            self._burst(now)

    # --- tokens

    def prefill(self, arrived: int, queued: int, velocity: float, now: float) -> None:
        """Prompt tokens that are new; all that are not computed; tokens a second of an instance, 0 = not known."""
        tokens = self.goal.tokens
        tokens.arrived(arrived)
        tokens.queued, tokens.velocity = queued, velocity
        if arrived and self.open:
            self._burst(now)

    # --- instances and slots

    def answer(self, shard: FunctionID, answers: int, now: float) -> Grant | None:
        """The Grant that answers a Demand, if there is anything to say: most Demands only say what was obeyed."""
        if not self.open:
            return None
        if self._named or self._refusal or not self.leases.knows(shard, now):
            return self.grant(shard, answers, now)
        account = self.leases.accounts[shard]
        news = account.unreachable and self._must_hear(shard, account, now)
        return self.grant(shard, answers, now) if news else None

    def grant(self, shard: FunctionID, answers: int, now: float) -> Grant:
        """What this shard may use; also to one that isn't in the account (then nothing)."""
        account = self.leases.accounts.get(shard)
        intended = account.intended if account is not None else {}
        known = self.fleet.known
        slots = [(known[i], n) for i, n in sorted(intended.items()) if i in known]
        if self._named:
            slots += [(known[i], 0) for i in self._roster if i in known and i not in intended]
        self._seq += 1
        refusal = self._refusal
        if account is not None:
            self.leases.sent(shard, self._seq, now)
            account.told = refusal, self.failed
            account.unreachable = {k.id for k, n in slots if n and not k.addr}
        return Grant(
            self.revision.key,
            self.me,
            self._seq,
            home_facts.LEASE_TTL_S,
            tuple([(k.id, k.addr, n) for k, n in slots]),
            refusal,
            self.failed,
            self.setbacks.retry_after_s(now) if refusal else 0.0,
            self.term,
            answers,
            tuple([now - k.ready_at if k.ready_at else 0.0 for k, _ in slots]),
        )

    def broken(self, instance: InstanceID, now: float) -> None:
        """A shard couldn't reach it: its node is asked, and nobody uses it until the answer, or for a moment."""
        self.fleet.broken(instance, now)

    # --- instances

    def observe(
        self,
        node: NodeID,
        facts: Iterable[Instance],
        full: bool,
        now: float,
        out: list[Instruction],
        asked_at: float | None = None,
    ) -> Change:
        """What a node says; `asked_at`: in answer to the AskNode of then. Without news nothing follows from it."""
        if asked_at is not None:
            self.take.node_answered(node)
        facts = tuple(facts)
        new = [f.id for f in facts if f.id not in self.fleet.known]
        change = self.fleet.observe(facts, node, full, now, asked_at)
        for known in change.ready:
            self.setbacks.succeeded()
            out.append(Remember(self.revision.key, known.id, known.node, known.addr))
        for instance in new:
            if instance in self.fleet.known and self.fleet.known[instance] not in change.ready:
                out.append(Remember(self.revision.key, instance, node))
        self._ended(change, now, out)
        self._heard(now)
        return change

    def _ended(self, change: Change, now: float, out: list[Instruction]) -> None:
        for known, fact in change.ended:
            out.append(Remember(self.revision.key, known.id, NOWHERE))
            if known.doomed_at is not None or known.state == "stopping":
                continue
            if known.ready_at and now - known.ready_at > SOON_S:
                continue
            reason = fact.reason if fact is not None else f"node {known.node or '?'} doesn't know it any more"
            permanent = fact is not None and fact.permanent and not self.fleet.ready
            if known.state != "unknown" or fact is not None:
                self.setbacks.start_failed(f"instance {known.id}: {reason}", permanent, now)

    def placed(self, outcome: Outcome, nodes: Iterable[NodeID], now: float, out: list[Instruction]) -> None:
        if outcome.node:
            self.fleet.placed(outcome.instance, outcome.node, now)
            self.without_room_since = None
            if outcome.instance in self.fleet.known and not self.fleet.known[outcome.instance].addr:
                out.append(Remember(self.revision.key, outcome.instance, outcome.node))
        elif outcome.unknown:
            asked = nodes if outcome.unknown == "?" else (outcome.unknown,)
            self.fleet.lost(outcome.instance, asked, now)
            if outcome.instance not in self.fleet.known:
                out.append(Remember(self.revision.key, outcome.instance, NOWHERE))
            self.setbacks.refused(outcome.reason, now)
        else:
            self.fleet.refused(outcome.instance)
            out.append(Remember(self.revision.key, outcome.instance, NOWHERE))
            self.setbacks.refused(outcome.reason, now, never=outcome.never)
            if self.without_room_since is None and not outcome.never:
                self.without_room_since = now

    # --- scale

    @property
    def failed(self) -> bool:
        return self.setbacks.permanent and not self.fleet.ready

    @property
    def _refusal(self) -> str:
        """Why there is no instance, "" when there is one."""
        return "" if self.fleet.ready else self.setbacks.reason

    @property
    def held(self) -> int:
        return sum(a.held for a in self.leases.accounts.values())

    @property
    def in_flight(self) -> int:
        return sum(a.in_flight for a in self.leases.accounts.values())

    @property
    def own(self) -> int:
        """How many it should have if it is alone."""
        return 0 if self.deleted or self.failed else self.goal.count

    def wish(self, routed: bool) -> Wish:
        revision = self.revision
        failed = self.failed or self.deleted
        return Wish(revision.key, revision.role, revision.generation, self.own, self.spec.max, failed, routed)

    def _burst(self, now: float) -> None:
        if not (self.deleted or self.failed):
            self.goal.burst(self._seen_now, self._allowed, now)

    @property
    def _seen_now(self) -> Seen:
        return Seen(self.held, self.in_flight, self.fleet.wanted, self.fleet.ready, bool(self.fleet.known))

    def _allowed(self, missing: int, now: float) -> int:
        """How many more may be started now."""
        return max(self.lag.allows(missing, now), min(missing, int(not self.fleet.wanted)))

    def tick(self, nodes: set[NodeID], now: float, out: list[Instruction]) -> None:
        """Some times a second."""
        self.leases.expire(now, self.seen)
        for known in self.fleet.nodes(nodes, now):
            out.append(Remember(self.revision.key, known.id, NOWHERE))
        self._heard(now)
        if self.open:
            decides = not (self.deleted or self.failed or self.lag.behind)
            self.goal.tick(self._seen_now, now, decides=decides)

    def fit(self, goal: int, now: float, out: list[Instruction]) -> list[InstanceID]:
        """Dooms what is too many; returns new ids to be placed, which count from now on."""
        if not self.open:
            return []
        self.agreed = goal
        existing = self.fleet.wanted
        if goal <= existing - self.fleet.asking:
            self.without_room_since = None
        if goal < existing:
            self._doom(existing - goal, now)
            return []
        missing = goal - existing
        missing -= self.fleet.keep(missing)
        if missing <= 0 or now < self.setbacks.retry_at:
            return []
        if self.spec.max:
            missing = min(missing, self.spec.max - len(self.fleet.known))
        missing = self._allowed(missing, now)
        self.lag.began(missing)
        ids = [self.new_id(self.revision.key) for _ in range(missing)]
        for instance in ids:
            self.fleet.asked(instance, now)
            out.append(Remember(self.revision.key, instance, ANY_NODE))
        return ids

    def _doom(self, count: int, now: float) -> None:
        """Those that aren't ready first, then the least used, of these the youngest."""
        why = "its revision was deleted" if self.deleted else f"scale-down to {self.fleet.wanted - count}"
        wanted = [k for k in reversed(self.fleet.known.values()) if k.wanted]
        wanted.sort(key=lambda k: (k.state == "ready", self.leases.in_use(k.id)))
        for known in wanted[:count]:
            self.fleet.doom(known, why, now)

    # --- a full cluster

    @property
    def least(self) -> int:
        """What others may not take from it."""
        return 0 if self.deleted else self.revision.scale.min

    @property
    def lacks(self) -> bool:
        """Instances are missing that have no place yet; they may have been asked for just now."""
        return self.open and self.agreed > self.fleet.wanted - self.fleet.asking

    def preempt(self, known: Known, reason: str, now: float) -> None:
        """It goes; another is asked for not before the next pause is over, and then waits for room like all."""
        self.fleet.doom(known, reason, now, preempted=True)
        self.setbacks.refused(reason, now)

    # --- what follows from all that

    def settle(self, now: float, out: list[Instruction], answering: FunctionID | None = None) -> None:
        """Slots to shards (not to the one whose answer follows), stops of what nobody uses, open questions."""
        if self.open:
            usable = self.fleet.usable(now)
            tell = self._allot(usable, now)
            if self._named and usable != self._roster:
                self._roster = usable
                tell = sorted({*tell, *self.leases.listening(now)})
            for shard in tell:
                if shard != answering:
                    out.append(SendGrant(shard, self.grant(shard, 0, now)))
            for shard, account in self.leases.accounts.items():
                if account.unreachable and shard != answering and self._must_hear(shard, account, now):
                    out.append(SendGrant(shard, self.grant(shard, 0, now)))
            if refusal := self._refusal:
                for shard, account in self.leases.accounts.items():
                    news = account.told != (refusal, self.failed)
                    if news and account.held and account.left_at is None and shard != answering:
                        out.append(SendGrant(shard, self.grant(shard, 0, now)))
            for known in self.fleet.leaving:
                self._stop(known, now, out)
        if now >= self._ask_at and (self.take.silent_nodes or self.fleet.in_doubt):
            nodes = self.take.silent_nodes | self.fleet.doubtful(now)
            if nodes:
                self._ask_at = now + ASK_AGAIN_S
            out.extend(AskNode(self.revision.key, node) for node in sorted(nodes))
        if self.open:
            for shard in self.leases.unheard(now, PUSH_AGAIN_S):
                out.append(SendGrant(shard, self.grant(shard, 0, now)))

    def _must_hear(self, shard: FunctionID, account: Account, now: float) -> bool:
        """Something that was promised to it is ready, and no node has told it, or it has not come of that."""
        for instance in account.unreachable:
            known = self.fleet.known.get(instance)
            if known is None or known.state != "ready" or not account.intended.get(instance):
                continue
            told = shard == self.me or shard in known.told
            if account.left_at is None and not (told and now - known.ready_at < ANNOUNCED_S):
                return True
        return False

    def _allot(self, usable: list[InstanceID], now: float) -> list[FunctionID]:
        """Not again for the same that it was done for last."""
        # Where starts are refused or fail, nothing is promised: it would be said and taken back each time.
        promises = self.revision.concurrency and not self.setbacks.reason
        coming = self.fleet.coming if promises else NOBODY
        same = usable is self._allotted and coming is self._promised
        if same and self.leases.basis(now) == self._basis:
            return []
        self._allotted, self._promised = usable, coming
        frozen = now < self.leases.frozen_until
        inherited = {k.id for k in self.fleet.known.values() if k.inherited} if frozen else ()
        told = self.leases.allot(usable, inherited, now, coming)
        self._basis = self.leases.basis(now)
        return told

    def _stop(self, known: Known, now: float, out: list[Instruction]) -> None:
        drain_s = self.revision.command.drain_s
        if known.state in ("starting", "ready") and known.doomed_at is not None and known.node:
            waited = now - known.doomed_at > (HAND_BACK_S if known.preempted else drain_s)
            if known.state == "ready" and self.leases.held_by(known.id, now) and not waited:
                return
            self.fleet.stopping(known, now)
        if known.state == "stopping" and now >= known.stop_at:
            known.stop_at = now + STOP_AGAIN_S
            out.append(StopInstance(self.revision.key, known.id, known.node, drain_s, known.why_doomed))

    @property
    def idle(self) -> bool:
        """At zero and nothing asked for: only the clock could change that."""
        return self.open and not (self.fleet.known or self.goal.count or self.held or self.deleted)

    @property
    def over(self) -> bool:
        """Deleted, and nothing of it is left."""
        return self.deleted and self.open and not self.fleet.known

    def check(self) -> None:
        """Invariants, for tests."""
        self.leases.check(list(self.fleet.known))
        self.fleet.check()
        if self.spec.max and not self.deleted:
            assert self.fleet.wanted <= max(self.spec.max, 0) or not self.open
