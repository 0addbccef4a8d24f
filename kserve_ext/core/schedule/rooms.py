"""What a Schedule function knows of the room in other partitions: who is told what, and whom to borrow from.

News spreads as a rumour: in each round to FANOUT others, for as many rounds as it takes to reach everybody. Only what
has changed by an eighth is news; what was missed, or changed by less, comes with an exchange of everything with one
other, every EXCHANGE_ROUNDS. So a function sends at most FANOUT messages a round, and next to none when nothing
happens, however many functions there are. A newer word of a function never yields to an older one.

A borrower asks the roomier of two that it draws among the roomiest, and deducts what it asks for until it hears of
that partition again, so that a burst doesn't fall on one. Draws are hashes of a counter: no two functions' are alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.rendezvous import ranked

FANOUT = 3
EXCHANGE_ROUNDS = 10
NEWS = 8  # a change of one part in so many
ROOMIEST = 4  # one part in so many of those that fit is drawn from, two at least
MOST_ROOMS = 128  # in one message


class Room(NamedTuple):
    """Of one partition: free in all and on its roomiest node, nodes; what no node of it exceeds, None = not known."""

    function: FunctionID
    version: tuple[int, int]  # incarnation of the function, and its count of changes
    free: Resources
    largest: Resources
    nodes: int = 0
    capacity: Resources | None = None


class Gossip(NamedTuple):
    """Tell `to`; `wants`: this is all that we know, and we want what it lacks in return."""

    to: FunctionID
    rooms: tuple[Room, ...]
    wants: bool


class Rooms:
    """Of all partitions but ours, and what we say of ours."""

    def __init__(self, me: FunctionID, incarnation: int = 0) -> None:
        self.me = me
        self.known: dict[FunctionID, Room] = {}
        self.own = Room(me, (incarnation, 0), Resources(), Resources())
        self._others: list[FunctionID] = []
        #: asked of another since we last heard of its room
        self._asked: dict[FunctionID, Resources] = {}
        #: news, and for how many rounds it is passed on
        self._news: dict[FunctionID, int] = {}
        self._rounds = self._draws = 0

    def view(self, functions: Collection[FunctionID]) -> None:
        self._others = sorted(f for f in functions if f != self.me)
        for gone in self.known.keys() - functions:
            del self.known[gone]
            self._asked.pop(gone, None)
            self._news.pop(gone, None)

    @property
    def complete(self) -> bool:
        """Every other partition has said what it has, and knows all its nodes."""
        return all(
            (room := self.known.get(f)) is not None and room.capacity is not None for f in self._others
        )

    # --- gossip

    def describe(
        self,
        free: Resources,
        largest: Resources,
        nodes: int,
        capacity: Resources | None,
        *,
        exactly: bool = False,
    ) -> None:
        """What we have now: news or not follows from what we said last. `exactly`: say no less if it is none."""
        said = self.own
        now = said._replace(free=free, largest=largest, nodes=nodes, capacity=capacity)
        if now == said:
            return
        news = (nodes, capacity) != (said.nodes, said.capacity) or _differ(free, said.free)
        if news or _differ(largest, said.largest):
            self._news[self.me] = self._lifetime()
        elif self._rounds % EXCHANGE_ROUNDS and not exactly:
            return  # goes with the next exchange
        self.own = now._replace(version=(said.version[0], said.version[1] + 1))

    def heard(self, rooms: Iterable[Room], *, wants: bool = False) -> tuple[Room, ...]:
        """What another has told; the answer is what we know better, and with `wants` what it has left out."""
        better: list[Room] = []
        named = {self.me}
        for room in rooms:
            function = room.function
            named.add(function)
            known = self.own if function == self.me else self.known.get(function)
            if known is not None and room.version <= known.version:
                if room.version < known.version:
                    better.append(known)
            elif function in self._others:
                self.known[function] = room
                self._asked.pop(function, None)
                self._news[function] = self._lifetime()
        if wants:
            better.extend(r for r in (self.own, *self.known.values()) if r.function not in named)
        return tuple(better[:MOST_ROOMS])

    def round(self) -> list[Gossip]:
        """Whom to tell what, once a period."""
        self._rounds += 1
        if not self._others:
            return []
        missing = any(f not in self.known for f in self._others)
        if missing or self._rounds % EXCHANGE_ROUNDS == 0:
            everything = (self.own, *self.known.values())[:MOST_ROOMS]
            return [Gossip(f, everything, wants=True) for f in self._draw(self._others, 1)]
        if not self._news:
            return []
        told = tuple(self._room(f) for f in list(self._news)[:MOST_ROOMS])
        for room in told:
            self._news[room.function] -= 1
            if self._news[room.function] == 0:
                del self._news[room.function]
        return [Gossip(f, told, wants=False) for f in self._draw(self._others, FANOUT)]

    # --- borrowing

    def lender(self, needs: Collection[Resources], but: Collection[FunctionID]) -> FunctionID | None:
        """Whom to ask for these: a node of theirs takes at least one of them, as far as we know."""
        fitting = [
            (left.gpus, left.cpu_milli, left.memory_mib, function)
            for function, room in self.known.items()
            if function not in but and any(need.fits(room.largest) for need in needs)
            for left in (room.free.minus(self._asked.get(function, Resources())),)
        ]
        if not fitting:
            return None
        fitting.sort(reverse=True)
        roomiest = {f[3]: f for f in fitting[: max(2, len(fitting) // ROOMIEST)]}
        lender = max(roomiest[f] for f in self._draw(roomiest, 2))[3]
        asked = self._asked.get(lender, Resources())
        for need in needs:
            asked = asked.plus(need)
        self._asked[lender] = asked
        return lender

    # --- inside

    def _room(self, function: FunctionID) -> Room:
        return self.own if function == self.me else self.known[function]

    def _draw(self, among: Collection[FunctionID], count: int) -> list[FunctionID]:
        self._draws += 1
        return ranked(f"{self.me}/{self.own.version[0]}/{self._draws}", among)[:count]

    def _lifetime(self) -> int:
        """Rounds until a rumour that each hearer passes on to FANOUT others has almost surely reached all."""
        return len(self._others).bit_length() // 2 + 2


def _differ(now: Resources, said: Resources) -> bool:
    return any(abs(a - b) * NEWS > b or (a == 0) != (b == 0) for a, b in zip(now, said, strict=True))
