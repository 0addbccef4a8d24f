"""Messages between processes: the way takes a hop, and each end's processor the time that costs.py says.

A call on a cached connection is one hop each way. Without a connection cache every call first opens a connection:
one more round trip, and the time of a hello on both processors. Under a stopwatch the real time of each handler is
taken, which is where costs.py comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import NamedTuple

from kserve_ext.sim import costs
from kserve_ext.sim.clock import Call, Core
from kserve_ext.sim.fleet import Fleet

Answered = Callable[[object], None]


class Process:
    """One function, agent or controller: a name, and a processor that does one thing at a time."""

    __slots__ = ("core", "name")

    def __init__(self, name: str, core: Core) -> None:
        self.name, self.core = name, core


class Taken(NamedTuple):
    """By the handlers of one kind: how often, and how many seconds in all."""

    times: int = 0
    seconds: float = 0.0


class Network:
    def __init__(self, fleet: Fleet, *, cached: bool = True, stopwatch: bool = False) -> None:
        self.fleet, self.clock, self.cached = fleet, fleet.clock, cached
        self.taken: dict[str, Taken] | None = {} if stopwatch else None
        self._seconds: dict[tuple[str, bool], float] = {}

    def process(self, name: str) -> Process:
        return Process(name, Core(self.clock))

    def do(self, process: Process, kind: str, then: Call, *, rpc: bool = False) -> None:
        """Work of this process, behind what it has to do already."""
        process.core.do(self.cost(kind, rpc), then if self.taken is None else self._timed(kind, then))

    def tell(self, source: Process, to: Process, kind: str, then: Call) -> None:
        """A message on a connection that is there."""
        if source is to:
            self.do(to, kind, then)
            return
        source.core.spend(costs.RPC * 1e-6)
        self.fleet.hop(lambda: self.do(to, kind, then, rpc=True))

    def call(
        self,
        source: Process,
        to: Process,
        kind: str,
        ask: Callable[[], object],
        answered: Answered | None,
        answer: str = "ack",
    ) -> None:
        """`answered` hears what `ask` says; the answer costs what `answer` costs."""

        def asked() -> None:
            said = ask()
            if answered is not None:
                self.tell(to, source, answer, lambda: answered(said))

        self.open(source, to, lambda: self.tell(source, to, kind, asked))

    def open(self, source: Process, to: Process, then: Call) -> None:
        """Now, if connections are cached; else behind a hello."""
        if self.cached or source is to:
            then()
            return
        source.core.spend(costs.CONNECT * 1e-6)
        to.core.spend(costs.CONNECT * 1e-6)
        self.fleet.count("connections")
        self.fleet.hop(lambda: self.fleet.hop(then))

    def aside(self, to: Process, kind: str, times: int = 1) -> None:
        """Messages of the background: they cost what they cost, and their handling is done by the caller."""
        self.fleet.count("messages", times)
        to.core.spend(times * self.cost(kind, True))

    def inline(self, process: Process, kind: str, work: Callable[[], int]) -> None:
        """Work that a clock begins, and that says how many items it had."""
        began = process_time()
        items = work()
        if self.taken is not None and items:
            before = self.taken.get(kind, Taken())
            self.taken[kind] = Taken(before.times + items, before.seconds + process_time() - began)
        process.core.spend(items * self.cost(kind, False))

    def cost(self, kind: str, rpc: bool) -> float:
        found = self._seconds.get((kind, rpc))
        if found is None:
            found = self._seconds[kind, rpc] = costs.seconds(kind, rpc=rpc)
        return found

    def _timed(self, kind: str, then: Call) -> Call:
        def timed() -> None:
            began = process_time()
            then()
            took = process_time() - began
            assert self.taken is not None
            before = self.taken.get(kind, Taken())
            self.taken[kind] = Taken(before.times + 1, before.seconds + took)

        return timed
