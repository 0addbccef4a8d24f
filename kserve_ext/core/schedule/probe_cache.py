"""Answers of nodes that a Schedule function may decide by again: a pool with bounded uses and bounded age.

After Prequal (NSDI'24). An answer counts for `age_s` at most and for so many starts at most as keeps the pool at its
size (`uses`); every start also takes `removed` answers away, the oldest and the fullest node's in turns, so that a
pool does not silt up with nodes that nobody wants. A node is *hot* when it is fuller than the `hot` quantile of the
pool: the best-scored of the cold ones is taken, where none is cold the least full. What own starts have taken of a
node since its answer is the partition's to know (partition.py deducts it): here they use the answer up. The answer
to a start is one about its node, a refusal's too; it takes the place of the one before, whose uses are over.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

from kserve_ext.core.facts import Resources, Revision
from kserve_ext.core.ids import NodeID
from kserve_ext.core.schedule.filters import Candidate, fits
from kserve_ext.core.schedule.scores import NOWHERE, Near, score, share_left

_NOTHING: Final = Resources()
#: an answer is never used more often, however large the pool is beside the partition
MOST_USES: Final = 32


class Rates(NamedTuple):
    pool: int = 16  # answers kept
    age_s: float = 1.0
    probes: float = 0.25  # sent for each start, besides the start itself, whose answer is as good
    removed: float = 0.05  # answers taken away for each start
    delta: float = 1.0  # how much faster than it is used up the pool may fill
    hot: float = 0.84


RATES: Final = Rates()


def uses(rates: Rates, nodes: int) -> int:
    """How many starts one answer is good for, in a partition of so many nodes (Prequal's b_reuse)."""
    kept = min(rates.pool, nodes) / max(1, nodes)
    gained = (1 - kept) * rates.probes - rates.removed
    if gained * MOST_USES <= 1 + rates.delta:  # where the pool holds all nodes, only age ends an answer
        return MOST_USES
    return max(1, math.floor((1 + rates.delta) / gained))


class _Answer:
    __slots__ = ("at", "uses")

    def __init__(self, at: float) -> None:
        self.at, self.uses = at, 0


class ProbeCache:
    def __init__(self, rates: Rates, name: str) -> None:
        """`name`: its draws are those of no other cache; they are hashes of a counter."""
        self.rates = rates
        self.probes = self.reused = 0
        self._name, self._draws = name, 0
        #: oldest first
        self._answers: dict[NodeID, _Answer] = {}
        self._to_probe = self._to_remove = 0.0
        self._remove_oldest = False

    def __len__(self) -> int:
        return len(self._answers)

    # --- events

    def answered(self, node: NodeID, now: float) -> None:
        """Its status has come, of whatever it was the answer."""
        self._answers.pop(node, None)
        self._answers[node] = _Answer(now)
        if len(self._answers) > self.rates.pool:
            del self._answers[next(iter(self._answers))]

    def lost(self, node: NodeID) -> None:
        """It refused, did not answer, or is no longer here."""
        self._answers.pop(node, None)

    def sent(self, node: NodeID, nodes: int, fullness: Callable[[NodeID], float]) -> None:
        """A start goes there, of a partition of so many nodes."""
        answer = self._answers.get(node)
        if answer is not None:
            self.reused += answer.uses > 0
            answer.uses += 1
            if answer.uses >= uses(self.rates, nodes):
                del self._answers[node]
        self._to_probe += self.rates.probes
        self._to_remove += self.rates.removed
        while self._to_remove >= 1 and self._answers:
            self._to_remove -= 1
            self._remove_oldest = not self._remove_oldest
            oldest = next(iter(self._answers))
            worst = max(sorted(self._answers), key=fullness)
            del self._answers[oldest if self._remove_oldest else worst]

    # --- questions

    def pool(self, now: float) -> list[NodeID]:
        """Nodes whose answers count now, in order of id; others are forgotten."""
        for node, answer in list(self._answers.items()):
            if now - answer.at > self.rates.age_s:
                del self._answers[node]
        return sorted(self._answers)

    def ahead(self, nodes: Iterable[NodeID], now: float) -> list[NodeID]:
        """Whom to ask now without waiting for the answer: what the starts since the last time are good for."""
        count = int(self._to_probe)
        self._to_probe -= count
        return self.ask(nodes, count, now) if count else []

    def ask(self, nodes: Iterable[NodeID], count: int, now: float) -> list[NodeID]:
        """So many nodes at random whose answers don't count (any more)."""
        pool = self.pool(now)
        unknown = sorted(set(nodes).difference(pool))
        count = min(count, len(unknown))
        for k in range(count):
            other = k + self._draw() % (len(unknown) - k)
            unknown[k], unknown[other] = unknown[other], unknown[k]
        self.probes += count
        return unknown[:count]

    def _draw(self) -> int:
        self._draws += 1
        text = f"{self._name}/{self._draws}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def fullness(candidate: Candidate) -> float:
    """The share that is taken of the scarcest resource, starts under way included."""
    return 1 - share_left(candidate.status.capacity, candidate.free, _NOTHING)


def choose_of_pool(
    revision: Revision,
    pool: Sequence[Candidate],
    hot: float,
    tried: Collection[NodeID] = (),
    partners: Near = NOWHERE,
) -> Candidate | None:
    """By the hot and cold rule; None when none of them fits."""
    fitting = [c for c in pool if c.status.node not in tried and fits(revision, c)]
    if not fitting:
        return None
    loads = sorted(fullness(c) for c in pool)
    limit = loads[min(len(loads) - 1, int(hot * len(loads)))]
    cold = [c for c in fitting if fullness(c) <= limit]
    if cold:
        return min(cold, key=lambda c: (-score(revision, c, partners), c.status.node))
    return min(fitting, key=lambda c: (fullness(c), c.status.node))
