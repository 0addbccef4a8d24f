"""A request of the fleet, as the Dispatch process that holds it sees it."""

from __future__ import annotations

from dataclasses import dataclass

from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.sim.fleet import Fleet, Request

NOBODY = InstanceID("")


@dataclass(slots=True, eq=False)
class Held:
    request: Request
    key: RevisionKey
    fleet: Fleet
    shard: FunctionID
    instance: InstanceID = NOBODY
    attempts: int = 0
    reason: str = ""
    held_bytes: int = 1

    def to(self, state: str) -> None:
        if state in ("refused", "failed"):
            self.fleet.refuse(self.request)
