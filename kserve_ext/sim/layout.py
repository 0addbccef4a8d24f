"""How many functions of each kind ours has in a run, and which parts of its design are on; and the ablations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from kserve_ext.core.facts import Kind


@dataclass(frozen=True)
class Layout:
    """How many functions of each kind, and what of the design is on."""

    dispatch: int = 35
    schedule: int = 35
    cluster_mgr: int = 35
    subset: int = 2  # shards that get the requests of one function
    probe_cache: bool = True
    connection_cache: bool = True
    told: bool = True  # what ClusterMgr functions tell of nodes arrives, after the first moment, too
    weight: float = 1.0  # so many requests are what each one stands for, in what it costs
    standby: int = 0  # slots that a node holds ready
    standby_s: float = 0.02  # from admission to ready, from one
    together: bool = False  # Dispatch functions are on one machine: when one has ended is seen

    def counts(self) -> tuple[tuple[Kind, int], ...]:
        return ("dispatch", self.dispatch), ("schedule", self.schedule), ("cluster_mgr", self.cluster_mgr)


FULL: Final = Layout()


def of_each(count: int) -> Layout:
    """So many of each kind, and no probe cache."""
    return Layout(count, count, count, probe_cache=False)


ABLATIONS: Final[dict[str, Layout]] = {
    "G_1": of_each(1),
    "G_8": of_each(8),
    "G_35": of_each(35),
    "G_35-C": replace(of_each(35), connection_cache=False),
    "full": FULL,
}
