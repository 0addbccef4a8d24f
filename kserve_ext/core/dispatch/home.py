"""The home: the account of all revisions that have one home key (one revision, or the two or more of a group).

Events go in, instructions come out; after every event the revisions' wishes are brought together (group.py),
new instances are asked for in one call (a gang when the whole group is at zero), and slots are settled. It is
created when the view makes this Dispatch function the home of the key, and dropped when the view moves the key
on; everything it knows it learns again from nodes, shards and the store's copy. While its process doesn't know
whether it still is the home (authority.py), it takes in what it hears and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from kserve_ext.core.dispatch.authority import Authority
from kserve_ext.core.dispatch.facts import Demand, Grant, Instruction, Outcome, Place, Retake
from kserve_ext.core.dispatch.group import agree
from kserve_ext.core.dispatch.lag import Lag
from kserve_ext.core.dispatch.revision_home import RevisionHome
from kserve_ext.core.dispatch.take_over import Copy, TakeOver
from kserve_ext.core.dispatch.yielding import chosen
from kserve_ext.core.facts import Instance, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey

RECALL_S = 2.0
MOST_NEAR = 32


class Home:
    def __init__(
        self,
        me: FunctionID,
        term: int,
        new_id: Callable[[str], InstanceID],
        authority: Authority | None = None,
        lag: Lag | None = None,
    ) -> None:
        """`authority` and `lag` are its process's; without one it never doubts, and is never behind."""
        self.me, self.term = me, term
        self.new_id = new_id
        self.authority = authority or Authority(still_s=float("inf"))
        self.lag = lag or Lag()
        self.revisions: dict[RevisionKey, RevisionHome] = {}
        self._nodes: set[NodeID] = set()
        self._shards: dict[FunctionID, int] = {}
        self._ghosts: set[FunctionID] = set()
        self._away: set[NodeID] = set()
        self._seen: frozenset[FunctionID] = frozenset()
        #: revisions of this home that have the traffic of their service
        self._routed: frozenset[RevisionKey] = frozenset()
        #: the Schedule function that has just told of room
        self._at: FunctionID | None = None

    # --- what there is

    def view(
        self,
        nodes: Iterable[NodeID],
        shards: Mapping[FunctionID, int],
        ghosts: Iterable[FunctionID],
        now: float,
        away: Iterable[NodeID] = (),
        seen: Iterable[FunctionID] = (),
    ) -> list[Instruction]:
        """Nodes, shards with their incarnations, shards and nodes that left so lately that they may be alive.

        `seen`: those of both whose end will be told (`ended`; of one in the view as an answer that uses nothing).
        """
        self._nodes, self._shards, self._ghosts = set(nodes), dict(shards), set(ghosts)
        self._away, self._seen = set(away), frozenset(seen)
        for home in self.revisions.values():
            home.seen = self._seen
            home.view(self._nodes, self._shards, now)
        return self._settle(now)

    def add(self, revision: Revision, fresh: bool, copies: Sequence[Copy], now: float) -> list[Instruction]:
        """A revision, new or taken over. `fresh`: nothing is stored of it, so it never had an instance."""
        if revision.key not in self.revisions:
            home = RevisionHome(self.me, revision, fresh, self.new_id, now, self.lag)
            self.revisions[revision.key] = home
            home.seen = self._seen
            self._take_over(home, copies, now)
        return self._settle(now)

    def route(self, routed: Container[RevisionKey], now: float) -> list[Instruction]:
        """Which revisions have the traffic of their service."""
        mine = frozenset(key for key in self.revisions if key in routed)
        if mine == self._routed:
            return []
        self._routed = mine
        return self._settle(now)

    def delete(self, key: RevisionKey, now: float) -> list[Instruction]:
        """Its instances drain and stop; drop it when it is over."""
        home = self.revisions.get(key)
        if home is not None:
            home.deleted = True
        return self._settle(now)

    def retake(self, term: int, now: float) -> list[Instruction]:
        """There was another home in between: everything has to be asked again."""
        if term > self.term:
            self._again(term, now)
        return self._settle(now)

    def _again(self, term: int, now: float) -> None:
        self.term = term
        for home in self.revisions.values():
            self._take_over(home, (), now)

    def _take_over(self, home: RevisionHome, copies: Sequence[Copy], now: float) -> None:
        take = TakeOver(self._nodes, self._shards, self._ghosts, copies, now + RECALL_S, self._away)
        home.take_over(self.term, take, now)

    # --- shards

    def demand(self, shard: FunctionID, demand: Demand, now: float) -> tuple[Grant | None, list[Instruction]]:
        """A Demand, and the Grant that answers it; none while it isn't known what runs, or without news.

        While the process's authority is in doubt, don't ask: an answer without a Grant renews leases, too.
        """
        home = self.revisions.get(demand.revision)
        if home is None or not self.authority.turns(now):
            return None, []
        if demand.term > self.term:
            return None, [Retake(demand.term)]
        home.demand(shard, demand, now)
        out = self._settle(now, answering=(demand.revision, shard))
        return home.answer(shard, demand.seq, now), out

    def obeyed(self, shard: FunctionID, demand: Demand, now: float) -> list[Instruction]:
        """What a shard says when it has obeyed a pushed Grant."""
        home = self.revisions.get(demand.revision)
        if home is None or not self.authority.turns(now):
            return []
        if demand.term > self.term:
            return [Retake(demand.term)]
        home.demand(shard, demand, now)
        return self._settle(now)

    def recalled(
        self, shard: FunctionID, keys: Iterable[RevisionKey], demands: Iterable[Demand], now: float
    ) -> list[Instruction]:
        """A shard's answer to a Recall of these revisions; those without a Demand it doesn't use."""
        by_key = {d.revision: d for d in demands}
        for key in keys:
            home = self.revisions.get(key)
            if home is None:
                continue
            demand = by_key.get(key)
            if demand is not None and demand.term > self.term:
                return [Retake(demand.term)]
            if demand is not None:
                home.demand(shard, demand, now)
            home.shard_answered(shard, now)
        return self._settle(now)

    def ended(self, shard: FunctionID, now: float) -> list[Instruction]:
        """The process of a shard that left the view has ended, and with it what it used: no lease is waited for."""
        self._ghosts.discard(shard)
        for home in self.revisions.values():
            home.shard_ended(shard, now)
        return self._settle(now)

    def broken(self, key: RevisionKey, instance: InstanceID, now: float) -> list[Instruction]:
        home = self.revisions.get(key)
        if home is not None:
            home.broken(instance, now)
        return self._settle(now)

    # --- tokens of a group

    def prefill(
        self, key: RevisionKey, arrived: int, queued: int, velocity: float, now: float
    ) -> list[Instruction]:
        """Prompt tokens for a prefill revision (revision_home.py)."""
        home = self.revisions.get(key)
        if home is not None:
            home.prefill(arrived, queued, velocity, now)
        return self._settle(now) if arrived else []

    def decoded(self, instance: InstanceID, tokens: int, occupancy: float, span_s: float) -> None:
        """What an instance of one of its decode revisions says of its work."""
        for home in self.revisions.values():
            if instance in home.fleet.known and home.revision.role == "decode":
                home.goal.decoded(tokens, occupancy, span_s)

    # --- nodes

    def observed(
        self, key: RevisionKey, node: NodeID, facts: Iterable[Instance], full: bool, now: float
    ) -> tuple[tuple[InstanceID, ...], list[Instruction]]:
        """A node's ModInstance: the instances that nobody wants, and what follows."""
        home = self.revisions.get(key)
        if home is None:
            return (), []
        out: list[Instruction] = []
        opened = home.open
        change = home.observe(node, facts, full, now, out)
        if not change.news and opened == home.open:
            return (), out
        return change.unwanted, self._settle(now, out)

    def node_says(
        self, key: RevisionKey, node: NodeID, facts: Iterable[Instance], asked_at: float, now: float
    ) -> list[Instruction]:
        """The answer to the AskNode of then: everything that it runs of this revision."""
        home = self.revisions.get(key)
        if home is None:
            return []
        out: list[Instruction] = []
        home.observe(node, facts, True, now, out, asked_at)
        return self._settle(now, out)

    def placed(self, outcomes: Mapping[RevisionKey, Iterable[Outcome]], now: float) -> list[Instruction]:
        """The answer to Place, or what is known without one."""
        out: list[Instruction] = []
        for key, of_revision in outcomes.items():
            home = self.revisions.get(key)
            if home is not None:
                for outcome in of_revision:
                    home.placed(outcome, self._nodes, now, out)
        return self._settle(now, out)

    # --- a full cluster

    def room_for(
        self, keys: Iterable[RevisionKey], function: FunctionID, now: float
    ) -> tuple[bool, list[Instruction]]:
        """A Schedule function keeps room for these: it is asked at once. False: nothing of them is missing.

        What it keeps may be room for a part of a gang; then the gang is asked for, there.
        """
        missing = {key for key, home in self.revisions.items() if home.lacks}
        if missing.isdisjoint(keys) or not self.authority.turns(now):
            return False, []
        for key in missing:
            self.revisions[key].setbacks.again_at(now)
        self._at = function
        out = self._settle(now)
        self._at = None
        return True, out

    def make_room(
        self, key: RevisionKey, node: NodeID, count: int, priority: int, reason: str, now: float
    ) -> tuple[int, list[Instruction]]:
        """For others of higher priority: how many of the revision on that node go (yielding.py)."""
        if not self.authority.turns(now):
            return 0, []
        going = chosen(self.revisions, key, node, count, priority)
        for home, known in going:
            home.preempt(known, reason, now)
        given = sum(g.home.revision.key == key and g.instance.node == node for g in going)
        return given, self._settle(now)

    # --- time

    def tick(self, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        if not self.authority.turns(now):
            return out
        for key, home in list(self.revisions.items()):
            home.tick(self._nodes, now, out)
            if home.over:
                del self.revisions[key]
        return self._settle(now, out)

    @property
    def asking(self) -> int:
        """Starts that aren't answered."""
        return sum(home.fleet.asking for home in self.revisions.values())

    @property
    def idle(self) -> bool:
        """Once a second is often enough to tick it."""
        return all(home.idle for home in self.revisions.values())

    @property
    def recalling(self) -> bool:
        """Some shard has yet to answer a Recall."""
        return any(home.take.silent_shards for home in self.revisions.values())

    @property
    def silent_shards(self) -> dict[FunctionID, list[RevisionKey]]:
        """Shards that have yet to answer a Recall, and for which revisions."""
        asked: dict[FunctionID, list[RevisionKey]] = {}
        for key, home in self.revisions.items():
            for shard in sorted(home.take.silent_shards):
                asked.setdefault(shard, []).append(key)
        return asked

    # --- inside

    def _settle(
        self,
        now: float,
        out: list[Instruction] | None = None,
        answering: tuple[RevisionKey, FunctionID] | None = None,
    ) -> list[Instruction]:
        out = [] if out is None else out
        if not self.authority.turns(now):
            return out
        if self.authority.term > self.term:
            self._again(self.authority.term, now)
        self._fit(now, out)
        for key, home in self.revisions.items():
            home.settle(now, out, answering[1] if answering and answering[0] == key else None)
        return out

    def _fit(self, now: float, out: list[Instruction]) -> None:
        homes = list(self.revisions.values())
        if len(homes) == 1 and homes[0].revision.role != "prefill":  # nobody to agree with
            (home,) = homes
            ids = home.fit(home.own, now, out) if home.open else []
            if ids:
                waiting = tuple(sorted(s for s, a in home.leases.accounts.items() if a.held))
                out.append(self._place([(home.revision, tuple(ids))], False, waiting, now))
            return
        if not all(home.open for home in homes):
            return
        ratio = next((h.revision.pd_ratio for h in homes if h.revision.pd_ratio is not None), None)
        goals = agree([home.wish(home.revision.key in self._routed) for home in homes], ratio)
        gang = self._wakes_from_zero(homes, goals)
        if gang and any(now < h.setbacks.retry_at for h in homes if goals[h.revision.key]):
            return
        items: list[tuple[Revision, tuple[InstanceID, ...]]] = []
        for home in homes:
            ids = home.fit(goals[home.revision.key], now, out)
            if ids:
                items.append((home.revision, tuple(ids)))
        if not items:
            return
        waiting = tuple(sorted({s for h in homes for s, a in h.leases.accounts.items() if a.held}))
        if gang:
            out.append(self._place(items, True, waiting, now))
        else:
            out.extend(self._place([item], False, waiting, now) for item in items)

    def _place(
        self,
        items: Sequence[tuple[Revision, tuple[InstanceID, ...]]],
        gang: bool,
        waiting: tuple[FunctionID, ...],
        now: float,
    ) -> Place:
        for revision, ids in items:
            self.revisions[revision.key].fleet.tells(ids, waiting)
        since = [self.revisions[revision.key].without_room_since for revision, _ in items]
        waited_s = max((now - at for at in since if at is not None), default=0.0)
        roles = {revision.role for revision, _ in items}
        partners = [h for h in self.revisions.values() if not gang and h.revision.role not in roles]
        near = sorted({k.node for h in partners for k in h.fleet.known.values() if k.wanted and k.node})
        return Place(tuple(items), gang, waiting, tuple(near[:MOST_NEAR]), waited_s, self._at)

    def _wakes_from_zero(self, homes: Sequence[RevisionHome], goals: Mapping[RevisionKey, int]) -> bool:
        """Both roles of the group are to start, and nothing of it exists."""
        roles = {h.revision.role for h in homes if goals[h.revision.key] and not h.deleted}
        nothing = not any(h.fleet.wanted for h in homes)
        return nothing and {"prefill", "decode"} <= roles

    def check(self) -> None:
        for home in self.revisions.values():
            home.check()
