"""A history laid out for the checks: who lived when, which faults there were, and when the cluster was calm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.chaos.history import Event

FOREVER = float("inf")
Span = tuple[float, float]


class Limits(NamedTuple):
    """What is promised (DESIGN 4), and how much later a busy machine may be noticed to keep it."""

    #: after a fault is over, everything is well again within this: silence 3 s, take-over 2 s, leases 3 s, and slack
    settle_s: float = 10.0
    known_s: float = 5.0
    stopped_s: float = 30.0
    #: an end is noticed so late at most
    late_s: float = 1.0
    #: a home gives up the instances of a node that is away for longer (kserve_ext/core/dispatch/fleet.py)
    away_s: float = 10.0
    #: a held request of a calm cluster with room gets its instance within this
    start_s: float = 15.0
    #: news of a service reaches every Dispatch function within this
    routed_s: float = 5.0
    #: with the store down, a request for a service at zero is answered within this
    answered_s: float = 12.0


class Violation(NamedTuple):
    invariant: str
    t: float
    text: str
    evidence: tuple[Event, ...] = ()


@dataclass(slots=True)
class Process:
    """One instance's process, as it was seen to be."""

    instance: str
    revision: str
    node: str
    pid: int
    began: float
    ended: float = FOREVER


@dataclass(slots=True)
class Service:
    revision: str
    applied: float
    least: int
    most: int
    concurrency: int
    needs: tuple[int, ...]
    group: str
    drain_s: float
    deleted: float = FOREVER

    @property
    def hog(self) -> bool:
        """It wants more than there is room for, by its name."""
        return self.revision.startswith("chaos/hog")


class Digest:
    def __init__(self, events: Sequence[Event], limits: Limits = Limits()) -> None:  # noqa: B008
        self.events, self.limits = events, limits
        self.end = events[-1].t if events else 0.0
        self.processes: list[Process] = []
        self.services: dict[str, Service] = {}
        #: spans in which each part was alive, by id: pid, from, to
        self.lives: dict[str, list[tuple[int, float, float]]] = {}
        #: Dispatch functions are as on machines of their own: none sees another's end
        self.apart = any(e.what == "begin" and e.facts.get("apart") for e in events)
        #: faults, from their beginning until they were over
        self.faults: list[tuple[Event, float]] = []
        by_pid: dict[int, Process] = {}
        for e in events:
            match e.what:
                case "began" if e.by == "instance":
                    p = by_pid[e.pid] = Process(e["instance"], e["revision"], e["node"], e.pid, e.t)
                    self.processes.append(p)
                case "gone" if e["of"] in by_pid:
                    by_pid[e["of"]].ended = e.t
                case "service":
                    self.services[e["revision"]] = Service(
                        e["revision"],
                        e.t,
                        e["bounds"][0],
                        e["bounds"][1],
                        e["concurrency"],
                        tuple(e["needs"]),
                        e["group"],
                        e["drain_s"],
                    )
                case "deleted" if e.by == "runner":
                    self.services[e["revision"]].deleted = e.t
                case "started":
                    self.lives.setdefault(e["part"], []).append((e["of"], e.t, FOREVER))
                case "died":
                    spans = self.lives[e["part"]]
                    spans[-1] = (*spans[-1][:2], e.t)
                case "fault":
                    self.faults.append((e, FOREVER))
                case "fault_over":
                    same = [
                        k
                        for k, (f, over) in enumerate(self.faults)
                        if over == FOREVER and all(f[x] == e[x] for x in ("kind", "target", "on"))
                    ]
                    if same:
                        self.faults[same[0]] = (self.faults[same[0]][0], e.t)

    # --- time

    def disturbed(self, *, kinds: Sequence[str] = (), parts: Sequence[str] = ()) -> list[Span]:
        """Spans of faults and of settling after them. `kinds`, `parts`: of these alone, where any are named."""
        spans = [
            (f.t, over + self.limits.settle_s)
            for f, over in self.faults
            if (not kinds or f["kind"] in kinds) and (not parts or f["target"] in parts)
        ]
        return union(spans)

    def calm(self, start: float, end: float) -> bool:
        return not any(a < end and start < b for a, b in self.disturbed())

    def part_ended(self, part: str, start: float, end: float) -> bool:
        """Some process of this part ended in the span."""
        return any(start <= ended <= end for _, _, ended in self.lives.get(part, ()))

    def near(self, start: float, end: float, *words: str, most: int = 12) -> tuple[Event, ...]:
        """Events of a span whose facts name all of `words`: what a reader wants to see beside a violation."""
        found = [e for e in self.events if start <= e.t <= end and all(w in str(e) for w in words)]
        return tuple(found[-most:])


def union(spans: Iterable[Span]) -> list[Span]:
    out: list[Span] = []
    for a, b in sorted(spans):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def minus(span: Span, holes: Iterable[Span]) -> list[Span]:
    """What of `span` lies in none of the holes."""
    out, at = [], span[0]
    for a, b in union(holes):
        if b <= at or a >= span[1]:
            continue
        if a > at:
            out.append((at, a))
        at = max(at, b)
    if at < span[1]:
        out.append((at, span[1]))
    return out


def length(spans: Iterable[Span]) -> float:
    return sum(b - a for a, b in spans)
