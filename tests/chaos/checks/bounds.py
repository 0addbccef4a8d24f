"""Invariant 4: min, max and concurrency limits hold across all shards; a gang starts as a whole or not at all.

Concurrency is what instances see themselves. Max is counted over living processes; those on a node that was away
for longer than a home waits for it don't count until it is back and has been told. Min is promised of a calm cluster.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.digest import FOREVER, Digest, Process, Service, Span, Violation, minus, union

NAME = "4 bounds"


def check(digest: Digest) -> Iterator[Violation]:
    yield from _concurrency(digest)
    away = {node: _away(digest, node) for node in {p.node for p in digest.processes}}
    for service in digest.services.values():
        here = [p for p in digest.processes if p.revision == service.revision]
        yield from _most(digest, service, here, away)
        yield from _least(digest, service, here)
    yield from _gangs(digest)


def _concurrency(digest: Digest) -> Iterator[Violation]:
    for e in digest.events:
        if e.what == "over" and e.facts.get("refused") and digest.apart:
            continue  # what is under way on another machine no home can know: there the instance has the last word
        if e.what == "over" and not _cut_off(digest, e["node"], e.t):
            did = "was to serve" if e.facts.get("refused") else "served"
            text = f"{e['instance']} {did} {e['in_flight']} requests at once, {e['limit']} are its limit"
            yield Violation(NAME, e.t, text, (*digest.near(e.t - 5, e.t, e["instance"]), e))


def _cut_off(digest: Digest, node: str, t: float) -> bool:
    """Clients may have left an instance there, and it can't have heard yet."""
    cuts = digest.disturbed(kinds=("cut",), parts=(node,))
    return any(a <= t <= b for a, b in cuts)


def _most(
    digest: Digest, service: Service, here: list[Process], away: dict[str, list[Span]]
) -> Iterator[Violation]:
    if not service.most:
        return
    late = digest.limits.late_s
    for p in here:
        there = [
            q
            for q in here
            if q.began <= p.began < q.ended - late and not any(a <= p.began < b for a, b in away[q.node])
        ]
        if len(there) > service.most:
            names = ", ".join(q.instance for q in there)
            text = f"{len(there)} instances of {service.revision}, at most {service.most}: {names}"
            evidence = digest.near(p.began - 15, p.began + 1, service.revision, most=40)
            yield Violation(NAME, p.began, text, evidence)


def _least(digest: Digest, service: Service, here: list[Process]) -> Iterator[Violation]:
    """In calm there are never fewer than min for as long as a start takes."""
    if not service.least:
        return
    slack = digest.limits.start_s
    whole: Span = (service.applied + slack, min(service.deleted, digest.end))
    if whole[0] >= whole[1]:
        return
    edges = sorted({whole[0], *(t for p in here for t in (p.began, p.ended) if whole[0] < t < whole[1])})
    few: list[Span] = []
    for a, b in zip(edges, [*edges[1:], whole[1]], strict=True):
        if sum(p.began <= a < p.ended for p in here) < service.least:
            few.append((a, b))
    for span in union(few):
        for a, b in minus(span, digest.disturbed()):
            if b - a > slack:
                text = f"fewer than {service.least} instances of {service.revision} for {b - a:.1f} s of calm"
                yield Violation(NAME, a, text, digest.near(a, b, service.revision))


def _gangs(digest: Digest) -> Iterator[Violation]:
    """Of one gang decision: where one member was launched, every member was admitted."""
    admitted: dict[str, float] = {}
    launched: dict[str, float] = {}
    for e in digest.events:
        if e.what == "start" and not e["refused"]:
            admitted.setdefault(e["instance"], e.t)
        elif e.what == "launch":
            launched[e["instance"]] = e.t
    for e in digest.events:
        if e.what == "place" and e["gang"]:
            ids = [i for _, of in e["items"] for i in of]
            began = [i for i in ids if i in launched]
            missing = [i for i in ids if i not in admitted]
            if began and missing and digest.calm(e.t, e.t + digest.limits.late_s):
                text = f"half a gang was started: {', '.join(began)} without {', '.join(missing)}"
                yield Violation(NAME, launched[began[0]], text, (e, *digest.near(e.t, e.t + 10, missing[0])))


def _away(digest: Digest, node: str) -> list[Span]:
    """When homes may have given its instances up: it, or all that could tell of it, was away for so long.

    From when that began, since instances of an agent that has died under way may be known to nobody, until it is
    back and its instances are stopped.
    """
    limits = digest.limits
    spans = [
        (f.t, over + limits.stopped_s)
        for f, over in digest.faults
        if f["target"] == node
        and f["kind"] in ("kill", "pause", "cut", "slow", "silent", "lost")
        and (over - f.t) >= 1.0
    ]
    ups = digest.lives.get(node, [])
    spans += [(b, FOREVER) for _, _, b in ups[-1:] if b < FOREVER]
    return union(spans)
