"""What a Schedule function may decide by, given the state of its partition: choose by cluster state.

*told*: ClusterMgr functions tell of every change of every node at once, and a status is at most one period behind.
Deciding by all of them beats any sample, and costs no message: that is the rule. *pool*: some nodes have not been
told of for TOLD_S (their ClusterMgr is silent, the partition was just taken over): the answers of the probe cache are
enough. *ask*: too few answers count; so many nodes are asked first. *elsewhere*: probing would find nothing: what was
last heard says that no node here has room, and another partition has some.

So many are asked as find one with room in all but MISSED of the cases, going by the share of the nodes that had room
when they were last heard: a nearly full partition needs many, and where that would be most of it, all are asked at
once. docs/decisions/0021 has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import NodeID
from kserve_ext.core.schedule.filters import Candidate, fits
from kserve_ext.core.schedule.partition import Partition
from kserve_ext.core.schedule.probe_cache import ProbeCache, Rates, choose_of_pool, fullness
from kserve_ext.core.schedule.scores import Near

#: statuses are told at least every second; so much later, nobody tells any more
TOLD_S: Final = 2.5
ASKED: Final = 3
MISSED: Final = 0.05
#: in a partition of so few nodes, a sample is no saving
FEW: Final = 4
#: asked at once at most, when those that were asked first had no room
MOST_ASKED: Final = 32
#: answers in the pool that fit, from which on they are a choice
ENOUGH: Final = 2


class State(NamedTuple):
    nodes: int  # of the partition
    told: int  # of them, those that are told of
    pool: int  # of them, those whose answers count and fit
    room: int  # of them, those that had room when they were last heard
    elsewhere: bool  # another partition has room


class Source(NamedTuple):
    kind: Literal["told", "pool", "ask", "elsewhere"]
    ask: int = 0


TOLD: Final = Source("told")
POOL: Final = Source("pool")
ELSEWHERE: Final = Source("elsewhere")


def source(state: State) -> Source:
    """Where the next decision comes from."""
    if state.told == state.nodes:
        return TOLD
    if state.pool >= min(ENOUGH, state.nodes):
        return POOL
    if not state.room and state.elsewhere:
        return ELSEWHERE
    return Source("ask", sample(state.nodes, state.room))


def sample(nodes: int, room: int) -> int:
    """How many of `nodes` to ask, of which `room` had room."""
    if nodes <= FEW or not room:
        return nodes
    if room == nodes:
        return ASKED
    needed = math.ceil(math.log(MISSED) / math.log(1 - room / nodes))
    return nodes if needed > nodes / 2 else max(ASKED, needed)


class Knowledge:
    """The state of one partition, and its probe cache."""

    def __init__(self, partition: Partition, rates: Rates, name: str) -> None:
        self.cache = ProbeCache(rates, name)
        self._partition = partition
        #: until then every node was told of late enough
        self._told_until = -1.0

    def all_told(self, now: float) -> bool:
        """Nothing is to be asked. Looks at all nodes once in TOLD_S while that is so."""
        if now < self._told_until:
            return True
        oldest = min(self._partition.told.values(), default=now)
        if now - oldest < TOLD_S:
            self._told_until = oldest + TOLD_S
        return now < self._told_until

    def source(self, revision: Revision, elsewhere: bool, now: float) -> Source:
        """For a start of `revision`."""
        partition = self._partition
        candidates = partition.candidates()
        told = sum(now - at < TOLD_S for at in partition.told.values())
        pool = sum(fits(revision, c) for c in self.pool(now))
        room = sum(fits(revision, c) for c in candidates) if pool < ENOUGH else pool
        return source(State(len(candidates), told, pool, room, elsewhere))

    def pool(self, now: float) -> list[Candidate]:
        """Nodes that may be decided by, when not all are told of: those that are, and those whose answers count."""
        partition = self._partition
        usable = set(self.cache.pool(now))
        usable |= {node for node, at in partition.told.items() if now - at < TOLD_S}
        return [c for node in sorted(usable) if (c := partition.candidate(node)) is not None]

    def best(
        self, revision: Revision, tried: Collection[NodeID], partners: Near, now: float
    ) -> Candidate | None:
        return choose_of_pool(revision, self.pool(now), self.cache.rates.hot, tried, partners)

    def sent(self, node: NodeID, now: float) -> list[NodeID]:
        """A start goes there; whom to ask meanwhile, so that the next ones find answers."""
        candidates = self._partition.candidates()
        self.cache.sent(node, len(candidates), self._fullness)
        return self.cache.ahead([c.status.node for c in candidates], now)

    def ask(self, count: int, but: Collection[NodeID], now: float) -> list[NodeID]:
        nodes = [c.status.node for c in self._partition.candidates() if c.status.node not in but]
        return self.cache.ask(nodes, count, now)

    def _fullness(self, node: NodeID) -> float:
        candidate = self._partition.candidate(node)
        return fullness(candidate) if candidate is not None else 1.0
