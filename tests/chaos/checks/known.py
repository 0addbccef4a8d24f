"""Invariant 3: every instance that a node runs is known to its revision's home within 5 s, or stopped within 30 s.

And nothing leaks: when everything has been deleted, nothing runs. Time in which faults were at work, or the cluster
was settling after them, counts for neither limit: those are promises of a cluster whose parts are there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.digest import FOREVER, Digest, Process, Span, Violation, length, minus, union

NAME = "3 known"


def check(digest: Digest) -> Iterator[Violation]:
    known = _known(digest)
    holes = digest.disturbed()
    limits = digest.limits
    for p in digest.processes:
        ended = min(p.ended, digest.end)
        for gap in minus((p.began, ended), known[p.instance]):
            calm = minus(gap, holes)
            if length(calm) <= limits.known_s + limits.late_s:
                continue
            drain = digest.services[p.revision].drain_s if p.revision in digest.services else 0.0
            stopped = p.ended < FOREVER and gap[1] == ended
            if stopped and length(calm) <= limits.stopped_s + drain + limits.late_s:
                continue
            yield Violation(
                NAME,
                gap[0],
                f"{p.instance} (pid {p.pid}) ran on {p.node} for {length(calm):.1f} s of calm unknown to any home",
                digest.near(gap[0] - 3, gap[1] + 3, p.instance),
            )
    yield from _left(digest)


def _left(digest: Digest) -> Iterator[Violation]:
    for e in digest.events:
        if e.what == "finished":
            for instance, pid in e["left"]:
                evidence = digest.near(0.0, e.t, instance)
                yield Violation(
                    NAME, e.t, f"{instance} (pid {pid}) still runs after everything was deleted", evidence
                )


def _known(digest: Digest) -> dict[str, list[Span]]:
    """By instance: when some living home knew it."""
    open_: dict[tuple[str, int, str], dict[str, float]] = defaultdict(dict)
    spans: dict[str, list[Span]] = defaultdict(list)

    def close(key: tuple[str, int, str], keep: set[str], t: float) -> None:
        for instance in [i for i in open_[key] if i not in keep]:
            spans[instance].append((open_[key].pop(instance), t))

    died = {of: t for lives in digest.lives.values() for of, _, t in lives}
    for e in digest.events:
        if e.what == "home":
            key = (e.by, e.pid, e["revision"])
            there = {k[0] for k in e["known"]}
            close(key, there, e.t)
            for instance in there:
                open_[key].setdefault(instance, e.t)
        elif e.what == "unhome":
            close((e.by, e.pid, e["revision"]), set(), e.t)
        elif e.what == "died":
            for key in [k for k in open_ if k[1] == e["of"]]:
                close(key, set(), e.t)
    for key in list(open_):
        close(key, set(), min(died.get(key[1], FOREVER), digest.end))
    return {p.instance: union(spans[p.instance]) for p in digest.processes}


def unknown_spans(digest: Digest, process: Process) -> list[Span]:
    """For people who debug: when no home knew it."""
    return minus((process.began, min(process.ended, digest.end)), _known(digest)[process.instance])
