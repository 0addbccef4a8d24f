"""Where the time of a request goes: the chain of messages that led to its beginning, stage by stage.

A clock that traces remembers of everything that is to happen what it follows from. When a request begins, the way
back from there is its critical path: of each message how long it was on its way, waited for its process, and was
worked on; and the start of the instance. Requests that began on an instance that others had asked for have a path
that began before they came, so that their first stage is negative in the mean.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

from kserve_ext.sim.clock import Call, Clock
from kserve_ext.sim.fleet import Fleet, Instance, Request, World
from kserve_ext.sim.runs import Make
from kserve_ext.sim.traces import Arrival

#: of all requests in the order of their latency: which shares are looked at
SHARES: Final = {"all": (0.0, 1.0), "about the median": (0.45, 0.55), "about p99": (0.985, 0.995)}
PATIENCE_S: Final = 2.0


class Cause(NamedTuple):
    """One moment of a chain."""

    before: Cause | None
    what: str  # sent, arrived, done or ready
    kind: str
    at: float
    work_s: float = 0.0  # of what has arrived


class TracingClock(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.cause: Cause | None = None

    def bind(self, call: Call, what: str = "", kind: str = "", work_s: float = 0.0) -> Call:
        cause = Cause(self.cause, what, kind, self.now, work_s) if what else self.cause

        def then() -> None:
            before, self.cause = self.cause, cause
            call()
            self.cause = before

        return then

    def mark(self, what: str, kind: str) -> None:
        self.cause = Cause(self.cause, what, kind, self.now)


class Path(NamedTuple):
    latency: float
    stages: Mapping[str, float]  # seconds each
    messages: tuple[str, ...]


class TracedFleet(Fleet):
    """Notes the path of each request that begins."""

    clock: TracingClock

    def __init__(self, clock: TracingClock, world: World) -> None:
        super().__init__(clock, world)
        self.paths: list[Path] = []

    def begin(self, request: Request, instance: Instance) -> None:
        self.paths.append(_path(request.at, self.clock.now, self.clock.cause))
        super().begin(request, instance)

    def _is_ready(self, instance: Instance, ready: Any) -> None:
        self.clock.mark("ready", "")
        super()._is_ready(instance, ready)


def _path(arrived: float, now: float, last: Cause | None) -> Path:
    chain: list[Cause] = []
    while last is not None:
        chain.append(last)
        last = last.before
    stages: dict[str, float] = defaultdict(float)
    messages, before, work_s = [], arrived, 0.0
    for moment in reversed(chain):
        took = moment.at - before
        match moment.what:
            case "sent":
                stages[f"{moment.kind}: before it is sent"] += took
                messages.append(moment.kind)
            case "arrived":
                stages[f"{moment.kind}: on its way"] += took
                work_s = moment.work_s
            case "done":
                stages[f"{moment.kind}: work"] += work_s
                stages[f"{moment.kind}: waits for the process"] += took - work_s
            case _:
                stages["start of the instance"] += took
        before = moment.at
    stages["after the last message"] += now - before
    return Path(now - arrived, stages, tuple(messages))


def paths(make: Make, arrivals: Sequence[Arrival], world: World) -> list[Path]:
    """Of all requests that began, the quickest first."""
    clock = TracingClock()
    fleet = TracedFleet(clock, world)
    fleet.system = make(fleet)
    for arrival in arrivals:
        clock.at(arrival.at, lambda arrival=arrival: fleet.arrive(arrival))  # type: ignore[misc]
    clock.run(arrivals[-1].at + PATIENCE_S)
    return sorted(fleet.paths, key=lambda path: path.latency)


def table(found: Sequence[Path]) -> Iterator[str]:
    """Lines for people: stages of a microsecond and more, the longest first, and the commonest paths."""
    for title, (low, high) in SHARES.items():
        share = found[int(len(found) * low) : max(1, int(len(found) * high))]
        yield f"{title}: {len(share)} requests, {fmean(p.latency for p in share) * 1e3:.3f} ms in the mean"
        sums: dict[str, float] = defaultdict(float)
        for path in share:
            for stage, seconds in path.stages.items():
                sums[stage] += seconds
        for stage, seconds in sorted(sums.items(), key=lambda item: -abs(item[1])):
            if abs(mean := seconds / len(share)) >= 1e-6:
                yield f"  {stage:<40}{mean * 1e6:>10.1f} us"
        for messages, count in Counter(path.messages for path in share).most_common(3):
            yield f"  {count:>6} by way of {' > '.join(messages)}"
