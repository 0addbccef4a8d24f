"""What one function of each kind bears: data, measured, and where (`python -m bench.calibrate`).

Requests of its kind a second, through real processes over sockets, with which the p99 of its answer stays within
P99_MS. Schedule: instances asked for; ClusterMgr: updates of nodes; Dispatch: requests to instances that are ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kserve_ext.core.control.facts import ScaledKind

MACHINE: Final = "2 cores, AMD EPYC, 23 GiB, Linux 6.18"
CONDITIONS: Final = (
    "others used both cores meanwhile: the best of several runs, and less than a quiet machine bears"
)
COMMIT: Final = "f38aa48 to ea4bed2"
P99_MS: Final = 20.0
THRESHOLDS: Final[Mapping[ScaledKind, float]] = {
    "cluster_mgr": 54000.0,  # 82% of its core, p99 12.2 ms
    "dispatch": 26000.0,  # 99% of its core, p99 1.7 ms
    "schedule": 8500.0,  # 62% of its core, p99 11.5 ms
}
