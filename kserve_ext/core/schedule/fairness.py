"""Who is next when there is room: by priority, then the smallest share of a namespace, then the longest wait.

Shares are dominant shares (Ghodsi et al., Dominant Resource Fairness, NSDI 2011): of each resource a namespace has a
share of all nodes here, the largest of these counts, over the namespace's weight. Whoever has waited AGED_S comes
before all that haven't, oldest first, whatever its class: so nobody waits longer than AGED_S and those who are older.
One that others are making room for comes even before, because that room was taken for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from typing import Final, Protocol, TypeVar

from kserve_ext.core.facts import Resources
from kserve_ext.core.schedule.filters import Candidate

AGED_S: Final = 60.0


class InLine(Protocol):
    """What the order goes by."""

    @property
    def key(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def since(self) -> float: ...
    @property
    def room_is_made(self) -> bool:
        """Others have been asked to make room for it."""


W = TypeVar("W", bound=InLine)


class Shares:
    """What each namespace holds of some nodes."""

    def __init__(self, candidates: Iterable[Candidate], weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._held: dict[str, list[int]] = {}
        self._total = Resources()
        for status, _, admitted in candidates:
            self._total = self._total.plus(status.capacity)
            for holding in status.holdings:
                self.add(holding.revision.partition("/")[0], holding.needs, holding.instances)
            for revision in admitted:
                self.add(revision.namespace, revision.needs)

    def add(self, namespace: str, needs: Resources, count: int = 1) -> None:
        held = self._held.get(namespace)
        if held is None:
            held = self._held[namespace] = [0, 0, 0, 0, 0]
        held[0] += needs[0] * count  # written out: it is asked for every holding of every node in each pass
        held[1] += needs[1] * count
        held[2] += needs[2] * count
        held[3] += needs[3] * count
        held[4] += needs[4] * count

    def of(self, namespace: str) -> float:
        """Its dominant share over its weight."""
        held = self._held.get(namespace)
        if held is None:
            return 0.0
        most, total = 0.0, self._total
        for k in (0, 1, 2, 3, 4):
            size = total[k]
            if size > 0:
                share = held[k] / size
                if share > most:
                    most = share
        return most / self._weights.get(namespace, 1.0)


def in_turn(waiters: Iterable[W], shares: Shares, now: float) -> Iterator[W]:
    """In order. What the caller adds to the shares in between counts for those who are still to come.

    Shares only grow meanwhile, so that the one with the smallest is found without a look at every namespace.
    """
    classes: dict[tuple[int, int], list[W]] = {}
    for waiter in waiters:
        if waiter.room_is_made:
            rank = (0, -waiter.priority)
        elif now - waiter.since >= AGED_S:
            rank = (1, 0)
        else:
            rank = (2, -waiter.priority)
        classes.setdefault(rank, []).append(waiter)
    for rank, of_class in sorted(classes.items()):
        of_class.sort(key=lambda w: (w.since, w.key))
        if rank[0] == 1:
            yield from of_class
            continue
        queues: dict[str, deque[W]] = {}
        for waiter in of_class:
            queues.setdefault(waiter.namespace, deque()).append(waiter)
        heap = [(shares.of(name), queue[0].since, name) for name, queue in queues.items()]
        heapify(heap)
        while heap:
            share, since, name = heap[0]
            grown = shares.of(name)
            if grown > share:
                heapreplace(heap, (grown, since, name))
                continue
            queue = queues[name]
            yield queue.popleft()
            if queue:
                heapreplace(heap, (shares.of(name), queue[0].since, name))
            else:
                heappop(heap)
