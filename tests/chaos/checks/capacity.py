"""Invariant 1: a node never runs more than its declared capacity, by its own account and by the processes seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.chaos.digest import Digest, Violation

NAMES = ("cpu", "memory", "gpus", "gpu memory", "rdma devices")
Needs = tuple[int, ...]


def check(digest: Digest) -> Iterator[Violation]:
    capacity: dict[str, Needs] = {}
    held: dict[str, dict[str, Needs]] = {}
    for e in digest.events:
        if e.what == "opened":
            capacity[e.by] = tuple(e["capacity"])
            held[e.by] = {i: tuple(needs) for i, _, _, needs, _ in e["found"]}
        elif e.what == "start" and not e["refused"] and e.by in held:
            held[e.by][e["instance"]] = tuple(e["needs"])
            over = _over(held[e.by].values(), capacity[e.by])
            if over:
                yield Violation("1 capacity", e.t, f"{e.by} has admitted more than it has: {over}", (e,))
        elif e.what == "ended" and e.by in held:
            held[e.by].pop(e["instance"], None)
    yield from _by_processes(digest, capacity)


def _by_processes(digest: Digest, capacity: dict[str, Needs]) -> Iterator[Violation]:
    """What was seen to live all at once; an end may have been noticed late."""
    late = digest.limits.late_s
    for node, has in capacity.items():
        here = [p for p in digest.processes if p.node == node and p.revision in digest.services]
        for p in here:
            there = [q for q in here if q.began <= p.began < q.ended - late]
            over = _over([digest.services[q.revision].needs for q in there], has)
            if over:
                names = ", ".join(q.instance for q in there)
                yield Violation("1 capacity", p.began, f"{node} runs more than it has: {over}: {names}")


def _over(needs: Iterable[Needs], capacity: Needs) -> str:
    total = [sum(column) for column in zip(*needs, strict=True)]
    return "; ".join(
        f"{name}: {used} of {has}"
        for name, used, has in zip(NAMES, total, capacity, strict=False)
        if used > has
    )
