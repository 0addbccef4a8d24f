"""Which node an instance goes to: filter by what fits, score what is left, and say why nothing does.

Pure functions over what the partition knows of its nodes. Order of preference: a node that already holds the
model, a node that runs the other half of the same gang (its KV then moves through shared memory), a node with
a ready zygote, then the node with the larger free share (spread). Equal scores fall to the lower node id, so
that a decision can be replayed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from kserve_ext.core.facts import NodeStatus, Resources, Revision
from kserve_ext.core.ids import NodeID

MODEL_CACHED = 4.0
NEAR_ITS_GANG = 2.0
ZYGOTE_READY = 1.0
MOST_STEPS = 2_000


class Candidate(NamedTuple):
    """A node with what is free on it after the starts that are under way."""

    status: NodeStatus
    free: Resources


def choose(
    revision: Revision,
    candidates: Iterable[Candidate],
    *,
    tried: Collection[NodeID] = (),
    near: Collection[NodeID] = (),
) -> Candidate | None:
    """The best node for one instance of `revision`, or None when none of those not yet tried fits."""
    best: Candidate | None = None
    best_rank: tuple[float, str] | None = None
    for candidate in candidates:
        status = candidate.status
        if status.node in tried or not status.accepting or not revision.needs.fits(candidate.free):
            continue
        rank = (-score(revision, candidate, near), status.node)
        if best_rank is None or rank < best_rank:
            best, best_rank = candidate, rank
    return best


def choose_gang(revisions: Sequence[Revision], candidates: Sequence[Candidate]) -> tuple[NodeID, ...] | None:
    """A node for each, so that all fit together; None when no assignment (within MOST_STEPS tries) does.

    The hardest to place goes first, each to its best node; a choice that leaves another without a node is taken back.
    """
    order = sorted(range(len(revisions)), key=lambda k: -_dominant(revisions[k].needs, candidates))
    free = {c.status.node: c.free for c in candidates}
    chosen: dict[int, NodeID] = {}
    steps = 0

    def place(depth: int) -> bool:
        nonlocal steps
        if depth == len(order):
            return True
        k = order[depth]
        revision, near = revisions[k], set(chosen.values())
        here = [Candidate(c.status, free[c.status.node]) for c in candidates]
        fitting = [c for c in here if c.status.accepting and revision.needs.fits(c.free)]
        for candidate in sorted(fitting, key=lambda c: (-score(revision, c, near), c.status.node)):
            steps += 1
            if steps > MOST_STEPS:
                return False
            node = candidate.status.node
            chosen[k], free[node] = node, free[node].minus(revision.needs)
            if place(depth + 1):
                return True
            free[node] = free[node].plus(revision.needs)
            del chosen[k]
        return False

    return tuple(chosen[k] for k in range(len(revisions))) if place(0) else None


def _dominant(needs: Resources, candidates: Sequence[Candidate]) -> float:
    """The largest share of the largest node that it takes, over all resources."""
    largest = Resources()
    for candidate in candidates:
        largest = largest.most(candidate.status.capacity)
    return max((n / size for n, size in zip(needs, largest, strict=True) if size > 0), default=0.0)


def score(revision: Revision, candidate: Candidate, near: Collection[NodeID] = ()) -> float:
    """Higher is better; the free share (0..1) only decides between nodes that are equal otherwise."""
    status = candidate.status
    total = 0.0
    if revision.model.uri and revision.model.key in status.models:
        total += MODEL_CACHED
    if status.node in near:
        total += NEAR_ITS_GANG
    if revision.command.zygote and any(m == revision.command.zygote and n > 0 for m, n in status.slots):
        total += ZYGOTE_READY
    return total + free_share(status.capacity, candidate.free.minus(revision.needs))


def free_share(capacity: Resources, free: Resources) -> float:
    """The scarcest resource's free share, over those that the node has at all."""
    shares = [have / size for have, size in zip(free, capacity, strict=True) if size > 0]
    return min(shares, default=0.0)


def why_not(revision: Revision, candidates: Collection[Candidate], place: str) -> str:
    """Why no node of `place` took an instance, naming the node that came closest and what it lacks."""
    if not candidates:
        return f"{place} has no nodes (see `galaxy status`)"
    accepting = [c for c in candidates if c.status.accepting]
    if not accepting:
        return f"all {len(candidates)} nodes of {place} are draining"
    fits_empty = [c for c in accepting if revision.needs.fits(c.status.capacity)]
    if not fits_empty:
        closest = min(accepting, key=lambda c: (_lacking(revision.needs, c.status.capacity), c.status.node))
        short = revision.needs.short_of(closest.status.capacity).replace(" free", " in all")
        return f"no node of {place} is large enough for {revision.key}; closest is {closest.status.node}: {short}"
    closest = min(fits_empty, key=lambda c: (_lacking(revision.needs, c.free), c.status.node))
    short = revision.needs.short_of(closest.free) or "it refused the start"
    return f"{place} is full for {revision.key}; closest is {closest.status.node}: {short}"


def _lacking(needs: Resources, have: Resources) -> float:
    return sum(max(0, n - h) / n for n, h in zip(needs, have, strict=True) if n > 0)
