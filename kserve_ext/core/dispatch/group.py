"""The rules of a group: a prefill and a decode revision that serve together, each scaled by itself.

Both are at zero or neither is; from zero they are one gang (both are placed, or neither); the ratio of prefill
to decode instances stays within its bounds, by raising the one that is too small. Max-scale wins over the ratio.
During a roll-out there are several revisions of a role: the one that has the traffic counts and is raised, not the
one that may never be ready (where no route says which, their sum counts and the newest is raised). A role whose
revisions have all failed for good is left alone: decode computes prefill itself, prefill without decode ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from kserve_ext.core.facts import Role
from kserve_ext.core.ids import RevisionKey

Ratio = tuple[int, int, int, int]  # least prefill:decode, most prefill:decode


class Wish(NamedTuple):
    """What one revision wants by itself."""

    key: RevisionKey
    role: Role
    generation: int
    number: int
    most: int = 0  # max-scale, 0 = unbounded
    failed: bool = False  # for good, and it has no instance
    routed: bool = False  # the route of its service names it


def agree(wishes: Sequence[Wish], ratio: Ratio | None = None) -> dict[RevisionKey, int]:
    """How many instances each revision should have."""
    goals = {w.key: w.number for w in wishes}
    decode = [w for w in wishes if w.role == "decode"]
    prefill = [w for w in wishes if w.role == "prefill"]
    if not prefill:
        return goals
    if not decode or all(w.failed for w in decode):
        return goals | {w.key: 0 for w in prefill}
    serving_decode, serving_prefill = _serving(decode), _serving(prefill)
    d, p = sum(w.number for w in serving_decode), sum(w.number for w in serving_prefill)
    if (d == 0 and p == 0) or not serving_prefill:
        return goals
    want_d, want_p = max(1, d), max(1, p)
    if ratio is not None:
        least_p, least_d, most_p, most_d = ratio
        want_p = max(want_p, math.ceil(want_d * least_p / least_d))
        want_d = max(want_d, math.ceil(want_p * most_d / most_p))
    _raise(serving_decode, want_d - d, goals)
    _raise(serving_prefill, want_p - p, goals)
    return goals


def _serving(of_role: Sequence[Wish]) -> list[Wish]:
    """Those that take the group's work."""
    live = [w for w in of_role if not w.failed]
    return [w for w in live if w.routed] or live


def _raise(of_role: Sequence[Wish], by: int, goals: dict[RevisionKey, int]) -> None:
    newest = max(of_role, key=lambda w: (w.generation, w.key))
    count = goals[newest.key] + by
    goals[newest.key] = min(count, newest.most) if newest.most else count
