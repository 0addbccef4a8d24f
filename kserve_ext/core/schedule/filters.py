"""Which nodes an instance may go to at all, and what to tell people when there is none.

A node has to accept starts, to carry every label that the revision selects, and to have what the instance needs of
each resource free beside the starts under way and the room that is kept for others.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from kserve_ext.core.facts import NodeStatus, Resources, Revision

_NOTHING = Resources()


class Candidate(NamedTuple):
    """A node with what is free on it after the starts under way; less than nothing where room is kept to come."""

    status: NodeStatus
    free: Resources
    admitted: tuple[Revision, ...] = ()  # instances since its holdings were said


def fits(revision: Revision, candidate: Candidate) -> bool:
    """An instance of `revision` may start there now."""
    status = candidate.status
    return status.accepting and revision.needs.fits(candidate.free) and selects(revision, status)


def selects(revision: Revision, status: NodeStatus) -> bool:
    """The node has every label of the revision's nodeSelector, with that value."""
    wanted = revision.node_selector
    return not wanted or all(label in status.labels for label in wanted)


def why_not(revision: Revision, candidates: Collection[Candidate], place: str) -> str:
    """Why no node of `place` took an instance, naming the node that came closest and what it lacks."""
    if not candidates:
        return f"{place} has no nodes (see `galaxy status`)"
    accepting = [c for c in candidates if c.status.accepting]
    if not accepting:
        return f"all {len(candidates)} nodes of {place} are draining"
    selected = [c for c in accepting if selects(revision, c.status)]
    if not selected:
        labels = ", ".join(f"{key}={value}" for key, value in revision.node_selector)
        return f"no node of {place} has the labels that {revision.key} selects: {labels}"
    fits_empty = [c for c in selected if revision.needs.fits(c.status.capacity)]
    if not fits_empty:
        closest = min(selected, key=lambda c: (_lacking(revision.needs, c.status.capacity), c.status.node))
        short = revision.needs.short_of(closest.status.capacity).replace(" free", " in all")
        return f"no node of {place} is large enough for {revision.key}; closest is {closest.status.node}: {short}"
    closest = min(fits_empty, key=lambda c: (_lacking(revision.needs, c.free), c.status.node))
    short = revision.needs.short_of(closest.free.most(_NOTHING)) or "it refused the start"
    return f"{place} is full for {revision.key}; closest is {closest.status.node}: {short}"


def _lacking(needs: Resources, have: Resources) -> float:
    return sum(max(0, n - h) / n for n, h in zip(needs, have, strict=True) if n > 0)
