"""What tests/support/world.py gives to its Dispatch processes: requests that belong to sessions."""

from __future__ import annotations

from collections.abc import Sequence

from kserve_ext.core.dispatch import affinity
from kserve_ext.core.dispatch.choosing import Chosen
from kserve_ext.core.dispatch.throttler import Tracker
from kserve_ext.core.facts import Revision
from tests.support.world_nodes import Request


class Sessions:
    """Every seventh request is of the same session."""

    def choose(self, request: Request, there: Sequence[Tracker], now: float) -> Chosen | None:
        loads = {t.id: t.in_flight for t in there}
        choice = affinity.choose(affinity.Keys(f"s-{request.id % 7}"), loads, affinity.PrefixTree())
        return None if choice is None else Chosen(next(t for t in there if t.id == choice.instance))

    def chosen(self, request: Request, chosen: Chosen, now: float) -> None:
        """Nothing is learned of it."""


def sessions(revision: Revision) -> Sessions | None:
    return Sessions() if revision.affinity == "session" else None
