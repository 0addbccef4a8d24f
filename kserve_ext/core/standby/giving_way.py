"""Which idle standby pod goes when a plain pod finds no node: one that waits to serve comes before a reserve.

One that holds some of what is lacking at a time, of one node until that has no more, and the next only when the last
is gone and the scheduler has had time for its place; where that helps, for several that wait at once. Those that have
no node themselves go at once, as they would be given the place; none does where the GPUs couldn't be enough if all
did. Every replica decides by the same facts; whoever keeps the pool carries it out. After a while a pod that can't be
helped counts no more, and pools are filled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

#: What waits for less may yet be given a node as things are.
AFTER_S: Final = 5.0
#: The scheduler tries a pod again within ten seconds of a place that has come free.
NEXT_S: Final = 15.0
#: A pod that waits for longer waits for something else; Knative gives a revision up by then.
PATIENCE_S: Final = 600.0
#: A pod that takes longer to end, as on a node that has died, isn't waited for.
ENDS_S: Final = 60.0
#: Pods that are given up for one that waits: the GPUs of a node.
MOST: Final = 8


class Waiting(NamedTuple):
    """A revision's pod that no node has room for."""

    name: str
    lacks: frozenset[str]  # resources, as the scheduler says
    gpus: int = 0  # that it asks for, on one node


class Idle(NamedTuple):
    """A pod of a pool that has no revision."""

    uid: str
    pool: str
    has: frozenset[str]  # resources that it requests
    made_at: float
    node: str = ""  # "" = not known
    scheduled: bool = True
    gpus: int = 0


class Way(NamedTuple):
    delete: tuple[tuple[str, str], ...] = ()  # uid, and for whom
    holds: Mapping[str, str] = {}  # pools that get no more pods now, and for whom


@dataclass(slots=True)
class GivingWay:
    _since: dict[str, float] = field(default_factory=dict)
    _given: Counter[str] = field(default_factory=Counter)
    #: By who waits: where room was begun to be made.
    _begun: dict[str, str] = field(default_factory=dict)
    #: Given up: when.
    _ends: dict[str, float] = field(default_factory=dict)
    _next_at: float = 0.0
    #: For how many at once: twice as many as long as somebody has been helped.
    _width: int = 1
    _helped: bool = False

    def decide(
        self,
        waiting: Iterable[Waiting],
        idle: Iterable[Idle],
        pools: Mapping[str, frozenset[str]],
        now: float,
        leaving: Collection[str] = (),
        rooms: Mapping[str, int] = MappingProxyType({}),
        placed: Callable[[str], bool] = lambda name: True,
    ) -> Way:
        """`pools`: what a pod of each requests; `leaving`: pods that are being deleted, and have not ended; `rooms`:
        by node, GPUs that no revision's standby pod has. A node that isn't in it may have any number; `placed`:
        whether one that waits no more has a node, and hasn't just gone."""
        waiting = sorted(waiting)
        names = {pod.name for pod in waiting}
        over = [name for name, at in self._since.items() if name not in names and now - at >= AFTER_S]
        self._since = {name: at for name, at in self._since.items() if name in names}
        self._count([name for name in over if placed(name)], names)
        self._begun = {name: node for name, node in self._begun.items() if name in names}
        self._ends = {uid: at for uid, at in self._ends.items() if now - at < ENDS_S}
        if not waiting:
            self._width, self._helped = 1, False
        ending = any(uid in leaving for uid in self._ends)
        if ending:
            self._next_at = max(self._next_at, now + NEXT_S)  # it has what it holds until it is gone
        for pod in waiting:
            self._since.setdefault(pod.name, now)
        due = [pod for pod in waiting if AFTER_S <= now - self._since[pod.name] < PATIENCE_S]
        holds: dict[str, str] = {}
        for pod in due:
            for pool in pools:
                if helps(pools[pool], pod.lacks):
                    holds.setdefault(pool, pod.name)
        idle = list(idle)
        delete = [(one.uid, holds[one.pool]) for one in idle if not one.scheduled and one.pool in holds]
        if now >= self._next_at and not ending:
            delete += self._round(due, idle, rooms, now)
        return Way(tuple(delete), holds)

    # --- inside

    def _count(self, placed: list[str], names: set[str]) -> None:
        """The scheduler gives a place to whom it likes: who had none made has that of another."""
        self._helped |= bool(placed)
        taken = sum(not self._given[name] for name in placed)
        self._given = Counter({name: count for name, count in self._given.items() if name in names})
        for _ in range(min(taken, self._given.total())):
            ((most, _),) = self._given.most_common(1)
            self._given[most] -= 1

    def _round(
        self, due: list[Waiting], idle: list[Idle], rooms: Mapping[str, int], now: float
    ) -> Iterator[tuple[str, str]]:
        self._width, self._helped = 2 * self._width if self._helped else 1, False
        spare, others, left = 0, False, self._width
        for pod in due:
            if left == 0:
                break
            if 0 < pod.gpus <= spare:  # what has gone for another is enough for it, too
                spare -= pod.gpus
                continue
            if self._given[pod.name] >= MOST or (others and not pod.gpus):
                continue
            one = self._best(pod, idle, rooms)
            if one is None:
                continue
            yield one.uid, pod.name
            left -= 1
            idle = [other for other in idle if other.uid != one.uid]
            spare += max(0, one.gpus - pod.gpus)
            others |= not pod.gpus  # for how many its CPU is enough isn't known: one for all of them
            self._given[pod.name] += 1
            self._begun[pod.name] = one.node
            self._ends[one.uid] = now
            self._next_at = now + NEXT_S

    def _best(self, pod: Waiting, idle: list[Idle], rooms: Mapping[str, int]) -> Idle | None:
        """Where room has been begun to be made, else where most of its like are: a pod's devices are of one node. The
        youngest there."""
        found = [
            one
            for one in idle
            if one.scheduled and helps(one.has, pod.lacks) and rooms.get(one.node, pod.gpus) >= pod.gpus
        ]
        there, begun = Counter(one.node for one in found), self._begun.get(pod.name)
        return min(
            found,
            key=lambda one: (
                one.node != begun,
                -len(one.has & pod.lacks),
                -there[one.node],
                one.node,
                -one.made_at,
                one.uid,
            ),
            default=None,
        )


def helps(has: frozenset[str], lacks: frozenset[str]) -> bool:
    """Every pod has some CPU: where devices are lacking, only one with a device makes room."""
    devices = frozenset(name for name in lacks if "/" in name)
    return bool(has & (devices or lacks))
