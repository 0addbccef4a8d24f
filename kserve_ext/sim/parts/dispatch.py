"""One Dispatch process in virtual time: the real shard and homes, carried out as the shells do it.

It drives kserve_ext/core/dispatch as activator_replacement does: what the cores ask for is done, and each outcome is
fed back. What is around it (other processes, nodes, the network, the time a message takes) is behind Around: that of
the simulator (network.py), or of the tests of invariants, which loses and reorders what goes by. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache, partial
from typing import Generic, Protocol, TypeVar

from kserve_ext.core import rendezvous
from kserve_ext.core.dispatch.authority import Authority
from kserve_ext.core.dispatch.choosing import Chooser
from kserve_ext.core.dispatch.facts import (
    AskNode,
    Demand,
    Grant,
    Instruction,
    Outcome,
    Place,
    Remember,
    Retake,
    SendGrant,
    StopInstance,
)
from kserve_ext.core.dispatch.ghosts import Ghost, Ghosts
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.dispatch.lag import Lag
from kserve_ext.core.dispatch.shard import AT_ONCE, MOST_ATTEMPTS, Shard, batched
from kserve_ext.core.dispatch.take_over import Copy, Leavers
from kserve_ext.core.dispatch.throttler import HELD, Holdable, Tracker
from kserve_ext.core.facts import Instance, Left, Member, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.schedule.facts import AskRoom


class Asked(Holdable, Protocol):
    """A request, as far as a Dispatch process touches it."""

    key: RevisionKey
    instance: InstanceID
    attempts: int
    reason: str

    def to(self, state: str) -> None:
        """held, sent, refused or failed."""


R = TypeVar("R", bound=Asked)
Told = Callable[[object], None]


class Around(Protocol[R]):
    """What a Dispatch process finds around it."""

    @property
    def now(self) -> float: ...

    @property
    def revisions(self) -> Mapping[RevisionKey, Revision]: ...

    def serve(self, request: R) -> None:
        """The request goes to its instance."""

    def call(
        self,
        caller: Dispatch[R],
        to: FunctionID,
        kind: str,
        ask: Callable[[Dispatch[R]], object],
        told: Told | None,
    ) -> None:
        """`ask` is done by another Dispatch process; `told` hears its answer, or "lost" when either way fails."""

    def place(self, caller: Dispatch[R], place: Place, told: Told) -> None:
        """A Schedule call; the answer is a dict of Outcomes by instance, or anything else when it is lost."""

    def stop(self, caller: Dispatch[R], stop: StopInstance, epoch: int) -> None: ...

    def recall(self, caller: Dispatch[R], ask: AskNode, epoch: int, told: Told) -> None:
        """The answer is everything that the node runs of the revision, or anything else when it is lost."""

    def home_of(self, home_key: str) -> FunctionID | None:
        """In the controller's view."""

    def remember(self, what: Remember) -> None: ...

    def stored(self, key: RevisionKey) -> tuple[bool, Sequence[Copy]]:
        """Whether the store has never heard of it, and what it has."""

    def new_id(self, key: str) -> InstanceID: ...

    def say(self, what: str) -> None:
        """For whoever reads what happened."""


@lru_cache(maxsize=1 << 17)
def owner(key: str, members: tuple[FunctionID, ...]) -> FunctionID | None:
    """rendezvous.owner, remembered: every process asks the same."""
    return rendezvous.owner(key, members)


def _here(name: FunctionID) -> str:
    return f"here:{name}"


def _apart(name: FunctionID) -> str:
    return f"{name}:1"


def _has_ended(incarnation: int, proc: Dispatch[R]) -> str:
    return "ended" if proc.dead or proc.incarnation > incarnation else ""


class Dispatch(Generic[R]):
    """One process. `validate`: homes check their invariants as time passes."""

    def __init__(
        self,
        around: Around[R],
        name: FunctionID,
        incarnation: int,
        chooser_of: Callable[[Revision], Chooser[R] | None] = lambda revision: None,
        *,
        validate: bool = False,
        idle_tick_s: float = 0.0,
        together: bool = False,
    ) -> None:
        """`together`: all are on one machine, where the end of a process is seen."""
        self.around, self.id, self.incarnation = around, name, incarnation
        self.validate, self.idle_tick_s = validate, idle_tick_s
        self.shard: Shard[R] = Shard(incarnation, chooser_of)
        self.homes: dict[str, Home] = {}
        self.dead = False
        self.epoch = 0
        self._addr_of: Callable[[FunctionID], str] = _here if together else _apart
        self.ghosts = Ghosts(self._addr_of(name))
        #: ghosts that were asked whether they have ended
        self._asked: dict[FunctionID, Ghost] = {}
        self._leavers = Leavers()
        self.authority = Authority()
        self.lag = Lag()
        self.members: dict[FunctionID, int] = {}
        self.nodes: Set[NodeID] = frozenset()
        self._owners = rendezvous.Owners[FunctionID]()
        self._idle_due: dict[str, float] = {}
        for rev in around.revisions.values():
            self.shard.know(rev, around.now)

    # --- what is known

    def view(
        self, epoch: int, members: dict[FunctionID, int], nodes: Set[NodeID], left: Sequence[Left] = ()
    ) -> None:
        if epoch < self.epoch or self.dead:
            return
        now = self.around.now
        shards = [Member(m, "dispatch", self._addr_of(m), incarnation) for m, incarnation in members.items()]
        self.ghosts.view(shards, left, now)
        self._leavers.view(nodes, left, now)
        self.authority.view(epoch)
        same = (members, nodes) == (self.members, self.nodes)
        self.epoch, self.members, self.nodes = epoch, members, nodes
        self._owners.change(members)
        self.shard.view(epoch, self._owners.of)
        if not same:
            for home_key in sorted({r.home_key for r in self.around.revisions.values()}):
                self._own(home_key)
        self._ask_ghosts(now)
        self.recall_shards()
        self.flush()

    def found(self, revision: Revision) -> None:
        """A revision that was applied before there were nodes: its home has nobody to ask."""
        now, home_key = self.around.now, revision.home_key
        self.shard.know(revision, now)
        if self._owners.of(home_key) != self.id:
            return
        home = self.homes[home_key] = Home(self.id, self.epoch, self.around.new_id, self.authority, self.lag)
        home.view((), {}, (), now)
        self.carry(home_key, home.add(revision, True, (), now))
        self.carry(
            home_key,
            home.view(
                self.nodes, self.members, self.ghosts.left, now, self._leavers.away(now), self.ghosts.seen
            ),
        )

    def _own(self, home_key: str) -> None:
        now = self.around.now
        if self._owners.of(home_key) != self.id:
            self.homes.pop(home_key, None)
            return
        fresh = home_key not in self.homes
        if fresh:
            self.homes[home_key] = Home(self.id, self.epoch, self.around.new_id, self.authority, self.lag)
        home = self.homes[home_key]
        self.carry(
            home_key,
            home.view(
                self.nodes, self.members, self.ghosts.left, now, self._leavers.away(now), self.ghosts.seen
            ),
        )
        if fresh:
            for rev in self.around.revisions.values():
                if rev.home_key == home_key:
                    self.carry(home_key, home.add(rev, *self.around.stored(rev.key), now))

    def recall_shards(self) -> None:
        for home_key, home in list(self.homes.items()):
            for shard, keys in home.silent_shards.items():
                self.call(
                    shard,
                    "recall",
                    partial(self._recall, home.term, keys),
                    partial(self._recalled, home_key, shard, keys),
                )

    @staticmethod
    def _recall(term: int, keys: list[RevisionKey], proc: Dispatch[R]) -> object:
        return None if proc.dead else proc.shard.recall(term, keys, proc.around.now)

    def _ask_ghosts(self, now: float) -> None:
        for gone in self.ghosts.tick(now):
            self._ended(gone)
        for gone, ghost in self.ghosts.left.items():
            if self._asked.get(gone) != ghost or gone in self.ghosts.seen:
                ended = partial(_has_ended, ghost.incarnation)
                self.call(gone, "ended", ended, partial(self._gone_said, gone, ghost))
        self._asked = dict(self.ghosts.left)

    def _gone_said(self, shard: FunctionID, ghost: Ghost, answer: object) -> None:
        if answer == "ended" and self.ghosts.ended(shard, ghost):
            self._ended(shard)

    def _ended(self, shard: FunctionID) -> None:
        for home_key, home in list(self.homes.items()):
            self.carry(home_key, home.ended(shard, self.around.now))

    def _recalled(self, home_key: str, shard: FunctionID, keys: list[RevisionKey], answer: object) -> None:
        if isinstance(answer, list) and home_key in self.homes:
            out = self.homes[home_key].recalled(shard, keys, answer, self.around.now)
            self.carry(home_key, out)

    # --- requests

    def submit(self, request: R) -> None:
        outcome = self.shard.submit(request.key, request, self.around.now)
        if isinstance(outcome, Tracker):
            self.go(request, outcome)
        elif outcome == HELD:
            request.to("held")
        else:
            request.to("refused")
        self.flush()

    def go(self, request: R, tracker: Tracker) -> None:
        request.to("sent")
        request.instance = tracker.id
        request.attempts += 1
        self.around.serve(request)

    def finished(self, request: R) -> None:
        following = self.shard.finished(request.key, request.instance, self.around.now)
        if following is not None:
            self.go(following, self.shard.parts[request.key].throttler.trackers[request.instance])
        self.flush()

    def failed(self, request: R) -> None:
        again = request.attempts < MOST_ATTEMPTS
        self.shard.failed(request.key, request, request.instance, again, self.around.now)
        request.to("held" if again else "failed")
        key, instance = request.key, request.instance
        home = self.around.home_of(self.around.revisions[key].home_key)
        if home is not None:
            self.around.call(self, home, "broken", lambda proc: proc.broken(key, instance), None)
        self.drain(key)
        self.flush()

    def drain(self, key: RevisionKey) -> None:
        for request, tracker in self.shard.drain(key, self.around.now):
            self.go(request, tracker)

    def announced(self, key: RevisionKey, facts: Iterable[Instance]) -> None:
        if not self.dead:
            self.shard.announced(key, facts, self.around.now)
            self.drain(key)
            self.flush()

    def flush(self) -> None:
        if not self.shard.pending:
            return
        for home, demand in self.shard.due(self.around.now):
            self.call(home, "demand", partial(self._ask_home, demand), partial(self._home_said, demand))

    def _ask_home(self, demand: Demand, proc: Dispatch[R]) -> object:
        """Done by the home's process."""
        home_key = self.around.revisions[demand.revision].home_key
        if proc.dead or home_key not in proc.homes or not proc.authority.turns(self.around.now):
            return "moved"
        grant, out = proc.homes[home_key].demand(self.id, demand, self.around.now)
        proc.carry(home_key, out)
        return grant

    def _home_said(self, demand: Demand, answer: object) -> None:
        now = self.around.now
        if answer in ("moved", "lost"):
            self.shard.unanswered(demand.revision, demand.seq, now)
        else:
            if isinstance(answer, Grant) and not self.dead:
                self.granted(answer)
            self.shard.answered(demand.revision, demand.seq, now)
            self.drain(demand.revision)
        self.flush()

    def granted(self, grant: Grant) -> None:
        slots = " ".join(f"{i}:{n}" for i, _, n in grant.slots)
        why = f" ({'for good: ' if grant.permanent else ''}{grant.refusal})" if grant.refusal else ""
        self.around.say(f"{grant.home} grants {self.id} {slots or 'nothing'}{why}")
        for request in self.shard.grant(grant, self.around.now):
            request.reason = grant.refusal
            request.to("refused")
        self.drain(grant.revision)

    def pushed(self, grant: Grant) -> Demand | None:
        if self.dead:
            return None
        self.granted(grant)
        return self.shard.report(grant.revision, self.around.now)

    # --- home

    def broken(self, key: RevisionKey, instance: InstanceID) -> None:
        home_key = self.around.revisions[key].home_key
        if not self.dead and home_key in self.homes:
            self.carry(home_key, self.homes[home_key].broken(key, instance, self.around.now))

    def mod_instance(
        self, key: RevisionKey, node: NodeID, facts: tuple[Instance, ...], full: bool
    ) -> tuple[InstanceID, ...]:
        self.announced(key, facts)
        home_key = self.around.revisions[key].home_key
        if home_key not in self.homes or not self.authority.turns(self.around.now):
            return ()
        unwanted, out = self.homes[home_key].observed(key, node, facts, full, self.around.now)
        self.carry(home_key, out)
        return unwanted

    def room_for(self, keys: Sequence[RevisionKey], function: FunctionID) -> bool:
        """A Schedule function keeps room; False: it isn't needed."""
        home_key = self.around.revisions[keys[0]].home_key
        if self.dead or home_key not in self.homes:
            return False
        wanted, out = self.homes[home_key].room_for(keys, function, self.around.now)
        self.carry(home_key, out)
        return wanted

    def make_room(self, ask: AskRoom) -> int:
        if self.dead or ask.home_key not in self.homes:
            return 0
        given, out = self.homes[ask.home_key].make_room(
            ask.victim, ask.node, ask.count, ask.priority, ask.reason, self.around.now
        )
        self.carry(ask.home_key, out)
        return given

    def carry(self, home_key: str, instructions: Iterable[Instruction]) -> None:
        self._idle_due.pop(home_key, None)
        for i in instructions:
            match i:
                case SendGrant():
                    self.call(
                        i.shard,
                        "grant",
                        partial(self._push, i.grant),
                        partial(self._pushed, home_key, i.shard),
                    )
                case Place():
                    self.around.place(self, i, partial(self._unless_dead, partial(self._placed, home_key, i)))
                case StopInstance():
                    self.around.stop(self, i, self.epoch)
                case AskNode():
                    term = self.homes[home_key].term if home_key in self.homes else self.epoch
                    asked = partial(self._node_said, home_key, i, self.around.now)
                    said = partial(self._unless_dead, asked)
                    self.around.recall(self, i, max(term, self.epoch), said)
                case Remember():
                    self.around.remember(i)
                case Retake():
                    if home_key in self.homes and i.term <= self.epoch:
                        self.carry(home_key, self.homes[home_key].retake(self.epoch, self.around.now))
                        self.recall_shards()

    @staticmethod
    def _push(grant: Grant, proc: Dispatch[R]) -> object:
        if proc.dead:
            return "lost"
        demand = proc.pushed(grant)
        proc.flush()
        return demand

    def _pushed(self, home_key: str, shard: FunctionID, answer: object) -> None:
        if isinstance(answer, Demand) and home_key in self.homes:
            self.carry(home_key, self.homes[home_key].obeyed(shard, answer, self.around.now))

    def _placed(self, home_key: str, place: Place, answer: object) -> None:
        if home_key not in self.homes:
            return
        outcomes: dict[RevisionKey, list[Outcome]] = {}
        for rev, ids in place.items:
            for instance in ids:
                outcome = (
                    answer[instance]
                    if isinstance(answer, dict)
                    else Outcome(instance, reason="no answer", unknown=NodeID("?"))
                )
                outcomes.setdefault(rev.key, []).append(outcome)
        self.carry(home_key, self.homes[home_key].placed(outcomes, self.around.now))

    def _node_said(self, home_key: str, i: AskNode, asked_at: float, answer: object) -> None:
        if isinstance(answer, tuple) and home_key in self.homes:
            out = self.homes[home_key].node_says(i.revision, i.node, answer, asked_at, self.around.now)
            self.carry(home_key, out)

    # --- time

    def tick(self, due: float | None = None) -> int:
        """What has become due, which should have been at `due`; how many revisions were looked at."""
        return sum(self.ticks(due))

    def ticks(self, due: float | None = None) -> Iterator[int]:
        """The same, some revisions at a time."""
        now = self.around.now
        asking = sum(home.asking for home in self.homes.values()) if self.lag.counts else 0
        self.lag.ticked(now if due is None else due, now, asking)
        looked = 0
        for keys in batched(self.shard.active, AT_ONCE):
            for _, late in self.shard.tick(self.around.now, keys):
                for request in late:
                    request.to("refused")
            for key in keys:
                self.drain(key)
            self.flush()
            looked += len(keys)
            yield len(keys)
        now = self.around.now
        if self.authority.turns(now):
            self.shard.renew(self.id, now)
        self._ask_others(now)
        self._ask_ghosts(now)
        due_now = [key for key in self.homes if now >= self._idle_due.get(key, 0.0)]
        for home_keys in batched(due_now, AT_ONCE):
            self._tick_homes(home_keys)
            looked += len(home_keys)
            yield len(home_keys)
        if looked:
            self.recall_shards()
        self.flush()

    def _tick_homes(self, home_keys: Iterable[str]) -> None:
        now = self.around.now
        for home_key in home_keys:
            home = self.homes.get(home_key)
            if home is None:
                continue
            self.carry(home_key, home.tick(now))
            if self.idle_tick_s and home.idle:
                self._idle_due[home_key] = now + self.idle_tick_s
            if self.validate:
                home.check()

    def _ask_others(self, now: float) -> None:
        """Whether they know a newer view; the controller says it to those that report."""
        for other in self.authority.asks(self.members.keys() - {self.id}, now):
            said = partial(self._other_said, other, now)
            self.call(other, "epoch", lambda proc: "lost" if proc.dead else proc.epoch, said)

    def _other_said(self, other: FunctionID, asked_at: float, answer: object) -> None:
        self.authority.answered(other, asked_at, answer if isinstance(answer, int) else None)

    # --- calls

    def call(self, to: FunctionID, kind: str, ask: Callable[[Dispatch[R]], object], told: Told) -> None:
        self.around.call(self, to, kind, ask, partial(self._unless_dead, told))

    def _unless_dead(self, told: Told, answer: object) -> None:
        if not self.dead:
            told(answer)
