"""The Dispatch process of tests/support/world.py: shard and homes, carried out as the shells do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from kserve_ext.core import rendezvous
from kserve_ext.core.dispatch import affinity
from kserve_ext.core.dispatch.choosing import Chosen
from kserve_ext.core.dispatch.facts import (
    LEASE_TTL_S,
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
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.dispatch.shard import MOST_ATTEMPTS, Shard
from kserve_ext.core.dispatch.throttler import HELD, Tracker
from kserve_ext.core.facts import Instance
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from tests.support.world_nodes import Request

if TYPE_CHECKING:
    from tests.support.world import World


class Sessions:
    """Every seventh request is of the same session."""

    def choose(self, request: Request, there: Sequence[Tracker], now: float) -> Chosen | None:
        loads = {t.id: t.in_flight for t in there}
        choice = affinity.choose(affinity.Keys(f"s-{request.id % 7}"), loads, affinity.PrefixTree())
        return None if choice is None else Chosen(next(t for t in there if t.id == choice.instance))

    def chosen(self, request: Request, chosen: Chosen, now: float) -> None:
        """Nothing is learned of it."""


class Proc:
    """One Dispatch process."""

    def __init__(self, world: World, name: FunctionID, incarnation: int) -> None:
        self.world, self.id, self.incarnation = world, name, incarnation
        self.shard: Shard[Request] = Shard(
            incarnation, lambda revision: Sessions() if revision.affinity == "session" else None
        )
        self.homes: dict[str, Home] = {}
        self.dead = False
        self.epoch = 0
        self.left: dict[FunctionID, float] = {}
        self.members: dict[FunctionID, int] = {}
        for rev in world.revisions.values():
            self.shard.know(rev, world.now)

    # --- the view

    def view(self, epoch: int, members: dict[FunctionID, int], nodes: set[NodeID]) -> None:
        if epoch < self.epoch or self.dead:
            return
        now = self.world.now
        for gone in self.members.keys() - members.keys():
            self.left[gone] = now
            proc = self.world.procs[gone]
            self.call(lambda proc=proc: "ended" if proc.dead else "", partial(self._gone_said, gone, now))  # type: ignore[misc]
        self.left = {m: t for m, t in self.left.items() if m not in members and now - t < LEASE_TTL_S}
        self.epoch, self.members = epoch, members

        def owner(key: str) -> FunctionID | None:
            return rendezvous.owner(key, members)

        self.shard.view(epoch, owner)
        for home_key in sorted({r.home_key for r in self.world.revisions.values()}):
            if owner(home_key) != self.id:
                self.homes.pop(home_key, None)
                continue
            fresh = home_key not in self.homes
            if fresh:
                self.homes[home_key] = Home(self.id, epoch, self.world.new_id)
            home = self.homes[home_key]
            self.carry(home_key, home.view(nodes, members, self.left, now))
            if fresh:
                for rev in self.world.revisions.values():
                    if rev.home_key == home_key:
                        self.carry(home_key, home.add(rev, *self.world.stored(rev.key), now))
        self.recall_shards()
        self.flush()

    def recall_shards(self) -> None:
        for home_key, home in list(self.homes.items()):
            for shard, keys in home.silent_shards.items():
                term = home.term

                def ask(
                    shard: FunctionID = shard, keys: list[RevisionKey] = keys, term: int = term
                ) -> object:
                    proc = self.world.procs[shard]
                    return None if proc.dead else proc.shard.recall(term, keys, self.world.now)

                self.call(ask, partial(self._recalled, home_key, shard, keys))

    def _gone_said(self, shard: FunctionID, since: float, answer: object) -> None:
        if answer == "ended" and self.left.get(shard) == since:
            del self.left[shard]
            for home_key, home in list(self.homes.items()):
                self.carry(home_key, home.ended(shard, self.world.now))

    def _recalled(self, home_key: str, shard: FunctionID, keys: list[RevisionKey], answer: object) -> None:
        if isinstance(answer, list) and home_key in self.homes:
            out = self.homes[home_key].recalled(shard, keys, answer, self.world.now)
            self.carry(home_key, out)

    # --- requests

    def submit(self, request: Request) -> None:
        outcome = self.shard.submit(request.key, request, self.world.now)
        if isinstance(outcome, Tracker):
            self.go(request, outcome)
        elif outcome == HELD:
            request.to("held")
        else:
            request.to("refused")
        self.flush()

    def go(self, request: Request, tracker: Tracker) -> None:
        request.to("sent")
        request.instance = tracker.id
        request.attempts += 1
        self.world.arrive(request)

    def finished(self, request: Request) -> None:
        following = self.shard.finished(request.key, request.instance, self.world.now)
        if following is not None:
            self.go(following, self.shard.parts[request.key].throttler.trackers[request.instance])
        self.flush()

    def failed(self, request: Request) -> None:
        again = request.attempts < MOST_ATTEMPTS
        self.shard.failed(request.key, request, request.instance, again, self.world.now)
        request.to("held" if again else "failed")
        home, key, instance = (
            self.world.home_of(self.world.revisions[request.key].home_key),
            request.key,
            request.instance,
        )
        if home is not None:
            self.world.send(partial(self.world.procs[home].broken, key, instance))
        self.drain(key)
        self.flush()

    def drain(self, key: RevisionKey) -> None:
        for request, tracker in self.shard.drain(key, self.world.now):
            self.go(request, tracker)

    def announced(self, key: RevisionKey, facts: Iterable[Instance]) -> None:
        if not self.dead:
            self.shard.announced(key, facts, self.world.now)
            self.drain(key)
            self.flush()

    def flush(self) -> None:
        for home, demand in self.shard.due(self.world.now):
            self.call(partial(self._ask_home, home, demand), partial(self._home_said, demand))

    def _ask_home(self, home: FunctionID, demand: Demand) -> object:
        proc = self.world.procs[home]
        home_key = self.world.revisions[demand.revision].home_key
        if proc.dead or home_key not in proc.homes:
            return "moved"
        grant, out = proc.homes[home_key].demand(self.id, demand, self.world.now)
        proc.carry(home_key, out)
        return grant

    def _home_said(self, demand: Demand, answer: object) -> None:
        now = self.world.now
        if answer in ("moved", "lost"):
            self.shard.unanswered(demand.revision, demand.seq, now)
        else:
            if isinstance(answer, Grant):
                self.granted(answer)
            self.shard.answered(demand.revision, demand.seq, now)
            self.drain(demand.revision)
        self.flush()

    def granted(self, grant: Grant) -> Demand | None:
        if self.dead:
            return None
        slots = " ".join(f"{i}:{n}" for i, _, n in grant.slots)
        why = f" ({'for good: ' if grant.permanent else ''}{grant.refusal})" if grant.refusal else ""
        self.world.say(f"{grant.home} grants {self.id} {slots or 'nothing'}{why}")
        for request in self.shard.grant(grant, self.world.now):
            request.reason = grant.refusal
            request.to("refused")
        key = grant.revision
        self.drain(key)
        return self.shard.report(key, self.world.now)

    # --- home

    def broken(self, key: RevisionKey, instance: InstanceID) -> None:
        home_key = self.world.revisions[key].home_key
        if not self.dead and home_key in self.homes:
            self.carry(home_key, self.homes[home_key].broken(key, instance, self.world.now))

    def mod_instance(
        self, key: RevisionKey, node: NodeID, facts: tuple[Instance, ...], full: bool
    ) -> tuple[InstanceID, ...]:
        home_key = self.world.revisions[key].home_key
        if home_key not in self.homes:
            return ()
        unwanted, out = self.homes[home_key].observed(key, node, facts, full, self.world.now)
        self.carry(home_key, out)
        return unwanted

    def carry(self, home_key: str, instructions: Iterable[Instruction]) -> None:
        for i in instructions:
            match i:
                case SendGrant():
                    self.call(partial(self._push, i), partial(self._pushed, home_key, i.shard))
                case Place():
                    self.call(partial(self.world.schedule, i, self.epoch), partial(self._placed, home_key, i))
                case StopInstance():
                    node = self.world.nodes[i.node]
                    self.world.send(partial(node.stop, i.instance, i.revision, self.epoch))
                case AskNode():
                    term = self.homes[home_key].term if home_key in self.homes else self.epoch
                    self.call(
                        partial(self._ask_node, i, max(term, self.epoch)),
                        partial(self._node_said, home_key, i),
                    )
                case Remember():
                    self.world.remember(i)
                case Retake():
                    if home_key in self.homes and i.term <= self.epoch:
                        self.carry(home_key, self.homes[home_key].retake(self.epoch, self.world.now))
                        self.recall_shards()

    def _push(self, i: SendGrant) -> object:
        proc = self.world.procs[i.shard]
        if proc.dead:
            return "lost"
        demand = proc.granted(i.grant)
        proc.flush()
        return demand

    def _pushed(self, home_key: str, shard: FunctionID, answer: object) -> None:
        if isinstance(answer, Demand) and home_key in self.homes:
            _, out = self.homes[home_key].demand(shard, answer, self.world.now)
            self.carry(home_key, out)

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
        self.carry(home_key, self.homes[home_key].placed(outcomes, self.world.now))

    def _ask_node(self, i: AskNode, epoch: int) -> object:
        node = self.world.nodes[i.node]
        return node.recall(epoch, i.revision) if node.agent else "lost"

    def _node_said(self, home_key: str, i: AskNode, answer: object) -> None:
        if isinstance(answer, tuple) and home_key in self.homes:
            self.carry(home_key, self.homes[home_key].node_says(i.revision, i.node, answer, self.world.now))

    def tick(self) -> None:
        now = self.world.now
        for _, late in self.shard.tick(now):
            for request in late:
                request.to("refused")
        for key in self.shard.active:
            self.drain(key)
        for home_key, home in list(self.homes.items()):
            self.carry(home_key, home.tick(now))
            home.check()
        self.recall_shards()
        self.flush()

    def call(self, ask: Callable[[], object], told: Callable[[object], None]) -> None:
        """A call through the network; `told` hears "lost" when either way fails."""

        def back(answer: object) -> None:
            if not self.dead:
                told(answer)

        def request() -> None:
            answer = ask()
            self.world.send(partial(back, answer), lost=partial(back, "lost"))

        self.world.send(request, lost=partial(back, "lost"))
