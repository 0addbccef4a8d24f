"""What one function of each kind bears: data, measured, and where (`python -m bench.calibrate`).

Requests of its kind a second, through real processes over sockets, with which the p99 of its answer stays within
P99_MS. Schedule: instances asked for; ClusterMgr: updates of nodes; Dispatch: requests to instances that are ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kserve_ext.core.control.facts import ScaledKind

MACHINE: Final = "not measured yet"
COMMIT: Final = ""
P99_MS: Final[Mapping[ScaledKind, float]] = {"dispatch": 20.0, "schedule": 20.0, "cluster_mgr": 20.0}
THRESHOLDS: Final[Mapping[ScaledKind, float]] = {
    "dispatch": 2000.0,
    "schedule": 1000.0,
    "cluster_mgr": 4000.0,
}
