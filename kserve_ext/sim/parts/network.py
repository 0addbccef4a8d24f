"""Messages between processes: the way takes a hop, and each end's processor the time that costs.py says.

A call on a cached connection is one hop each way. Without a connection cache every call first opens a connection:
one more round trip, and the time of a hello on both processors. Under a stopwatch the real time of each handler is
taken, which is where costs.py comes from. A process may be dead, which its callers notice at once, or paused; with a
Weather set, messages are lost, late and repeated as well, and a call that isn't answered in CALL_S has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Final, NamedTuple, Protocol

from kserve_ext.sim import costs
from kserve_ext.sim.clock import Call, Core
from kserve_ext.sim.fleet import Fleet

Answered = Callable[[object], None]
CALL_S: Final = 1.0
#: What comes once for each request or each start; the rest comes as often as time passes, or once for many: looks at
#: nodes for those who wait for room, too (at most one a GIVE_S), and questions to nodes that have a new owner.
FOR_EACH: Final = frozenset(
    (
        "acknowledged", "announce", "failed", "finished", "placed", "probe", "probed", "schedule",
        "schedule-call", "start", "started", "stop", "submit", "told", "told-whole",
    )
)  # fmt: skip


class Process:
    """One function, agent or controller: a name, and a processor that does one thing at a time."""

    __slots__ = ("core", "dead", "name", "paused_until")

    def __init__(self, name: str, core: Core) -> None:
        self.name, self.core = name, core
        self.dead = False
        self.paused_until = 0.0

    def runs(self, now: float) -> bool:
        return not self.dead and now >= self.paused_until


class Taken(NamedTuple):
    """By the handlers of one kind: how often, and how many seconds in all."""

    times: int = 0
    seconds: float = 0.0


class Weather(Protocol):
    def fate(self, source: Process, to: Process, kind: str) -> tuple[float, ...]:
        """How much later than by itself each copy of the message arrives; no copy: it is lost."""

    def cut_off(self, process: Process) -> bool:
        """Nothing of it gets through."""

    def apart(self, one: Process, other: Process) -> bool:
        """Nothing gets through between these two."""


class Network:
    def __init__(
        self, fleet: Fleet, *, cached: bool = True, stopwatch: bool = False, weight: float = 1.0
    ) -> None:
        """`weight`: each request, and each start, costs as much as so many."""
        self.fleet, self.clock, self.cached, self.weight = fleet, fleet.clock, cached, weight
        self.weather: Weather | None = None
        self.taken: dict[str, Taken] | None = {} if stopwatch else None
        self._seconds: dict[tuple[str, bool], float] = {}

    def process(self, name: str) -> Process:
        return Process(name, Core(self.clock))

    def cut_off(self, process: Process) -> bool:
        return self.weather is not None and self.weather.cut_off(process)

    def reaches(self, source: Process, to: Process) -> bool:
        """What goes on in the background gets there."""
        weather = self.weather
        if weather is None:
            return True
        return not (weather.cut_off(source) or weather.cut_off(to) or weather.apart(source, to))

    def do(
        self,
        process: Process,
        kind: str,
        then: Call,
        *,
        rpc: bool = False,
        own: bool = False,
        lost: Call | None = None,
    ) -> None:
        """Work of this process, behind what it has to do already; `lost`: it is dead by then.

        `own`: it asks itself, which is done next.
        """
        work = then if self.taken is None else self._timed(kind, then)
        cost = self.cost(kind, rpc)

        def done() -> None:
            self.clock.mark("done", kind)
            if not process.dead:
                work()
            elif lost is not None:
                lost()

        process.core.do(cost, self.clock.bind(done, "arrived", kind, cost), own=own)

    def tell(self, source: Process, to: Process, kind: str, then: Call, lost: Call | None = None) -> None:
        """A message on a connection that is there; `lost`: nobody listens at its end."""
        if source is to:
            self.clock.bind(lambda: self.do(to, kind, then, own=True), "sent", kind)()
            return
        source.core.spend(costs.RPC * 1e-6)
        if self.weather is None:
            arrives = lambda: self.do(to, kind, then, rpc=True, lost=lost)  # noqa: E731
            self.fleet.hop(self.clock.bind(arrives, "sent", kind))
            return
        for late in self.weather.fate(source, to, kind):
            arrive = lambda: self.do(to, kind, then, rpc=True, lost=lost)  # noqa: E731
            self.fleet.hop(lambda late=late, arrive=arrive: self.clock.after(late, arrive))  # type: ignore[misc]

    def call(
        self,
        source: Process,
        to: Process,
        kind: str,
        ask: Callable[[], object],
        answered: Answered | None,
        answer: str = "ack",
        lost: Call | None = None,
    ) -> None:
        """`answered` hears what `ask` says; the answer costs what `answer` costs. `lost`: there is none."""
        if answered is None:
            self.open(source, to, lambda: self.tell(source, to, kind, lambda: (ask(), None)[1], lost))
            return
        self.ask(source, to, kind, lambda reply: reply(ask()), answered, answer, lost)

    def ask(
        self,
        source: Process,
        to: Process,
        kind: str,
        asked: Callable[[Answered], None],
        answered: Answered,
        answer: str = "ack",
        lost: Call | None = None,
    ) -> None:
        """A call that is answered when `asked` says so; only the first of `answered` and `lost` happens."""
        over = False

        def hear(said: object) -> None:
            nonlocal over
            if not over:
                over = True
                answered(said)

        def fail() -> None:
            nonlocal over
            if not (over or source.dead):
                over = True
                if lost is not None:
                    lost()

        def reply(said: object) -> None:
            self.tell(to, source, answer, lambda: hear(said))

        if self.weather is not None:
            self.clock.after(CALL_S, fail)
        self.open(source, to, lambda: self.tell(source, to, kind, lambda: asked(reply), fail))

    def open(self, source: Process, to: Process, then: Call) -> None:
        """Now, if connections are cached; else behind a hello."""
        if self.cached or source is to:
            then()
            return
        source.core.spend(costs.CONNECT * 1e-6)
        to.core.spend(costs.CONNECT * 1e-6)
        self.fleet.count("connections")
        self.fleet.hop(lambda: self.fleet.hop(then))

    def aside(self, to: Process, kind: str, items: int = 1) -> None:
        """A message of the background with so many things in it: it costs what it costs; the caller handles it."""
        self.fleet.count("messages")
        to.core.spend(items * self.cost(kind, False) + costs.RPC * 1e-6)

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
            weight = self.weight if kind in FOR_EACH else 1.0
            found = self._seconds[kind, rpc] = costs.seconds(kind, rpc=rpc) * weight
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
