"""Which node an instance goes to: of those that it may go to (filters.py) the one with the highest score (scores.py).

Equal scores fall to the lower node id, so that a decision can be replayed. This is the definition, by looking at
every node; ranking.py keeps the same order from one decision to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import NodeID
from kserve_ext.core.schedule.filters import Candidate, fits
from kserve_ext.core.schedule.scores import NOWHERE, Near, score


def choose(
    revision: Revision,
    candidates: Iterable[Candidate],
    *,
    tried: Collection[NodeID] = (),
    partners: Near = NOWHERE,
) -> Candidate | None:
    """The best node for one instance of `revision`, or None when none of those not yet tried fits."""
    best: Candidate | None = None
    best_rank: tuple[float, str] | None = None
    for candidate in candidates:
        if candidate.status.node in tried or not fits(revision, candidate):
            continue
        rank = (-score(revision, candidate, partners), candidate.status.node)
        if best_rank is None or rank < best_rank:
            best, best_rank = candidate, rank
    return best
