"""A node for each member of a gang, so that all fit together; or none.

A gang is whatever is decided as one: the prefill and decode instance that a group wakes with, or any number of
instances of several revisions. The hardest to place goes first, each to its best node given where the others are; a
choice that leaves another without a node is taken back. The search is bounded: what MOST_STEPS tries don't find is
refused, and tried anew when there is other room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kserve_ext.core.facts import NodeStatus, Resources, Revision
from kserve_ext.core.ids import NodeID
from kserve_ext.core.schedule.filters import Candidate, fits
from kserve_ext.core.schedule.scores import Near, near, score

MOST_STEPS = 2_000


def choose_gang(revisions: Sequence[Revision], candidates: Sequence[Candidate]) -> tuple[NodeID, ...] | None:
    """Nodes in the order of `revisions`; None when no assignment was found."""
    order = sorted(range(len(revisions)), key=lambda k: -_dominant(revisions[k].needs, candidates))
    known: dict[NodeID, NodeStatus] = {c.status.node: c.status for c in candidates}
    free = {c.status.node: c.free for c in candidates}
    chosen: dict[int, NodeID] = {}
    steps = 0

    def place(depth: int) -> bool:
        nonlocal steps
        if depth == len(order):
            return True
        k = order[depth]
        revision, partners = revisions[k], _near(chosen, known)
        here = [Candidate(status, free[node]) for node, status in known.items()]
        fitting = [(-score(revision, c, partners), c.status.node) for c in here if fits(revision, c)]
        for _, node in sorted(fitting):
            steps += 1
            if steps > MOST_STEPS:
                return False
            chosen[k], free[node] = node, free[node].minus(revision.needs)
            if place(depth + 1):
                return True
            free[node] = free[node].plus(revision.needs)
            del chosen[k]
        return False

    return tuple(chosen[k] for k in range(len(revisions))) if place(0) else None


def _near(chosen: Mapping[int, NodeID], known: Mapping[NodeID, NodeStatus]) -> Near:
    nodes = set(chosen.values())
    return near(nodes, [known[node] for node in nodes])


def _dominant(needs: Resources, candidates: Sequence[Candidate]) -> float:
    """The largest share of the largest node that it takes, over all resources."""
    largest = Resources()
    for candidate in candidates:
        largest = largest.most(candidate.status.capacity)
    return max((n / size for n, size in zip(needs, largest, strict=True) if size > 0), default=0.0)
