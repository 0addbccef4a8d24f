"""What one function of each kind bears: data, measured, and where (`python -m bench.calibrate`).

Requests of its kind a second, through real processes over sockets, with which the p99 of its answer stays within
P99_MS. Schedule: instances asked for; ClusterMgr: updates of nodes; Dispatch: requests to instances that are ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kserve_ext.core.control.facts import ScaledKind

MACHINE: Final = "2 cores, AMD EPYC, 23 GiB, Linux 6.18.44-fc-v669"
COMMIT: Final = "c747cc3+"
P99_MS: Final = 20.0
#: At that rate: cluster_mgr used 30% of its core, p99 was 12.1 ms
#: At that rate: dispatch used 99% of its core, p99 was 1.7 ms
#: At that rate: schedule used 34% of its core, p99 was 10.3 ms
THRESHOLDS: Final[Mapping[ScaledKind, float]] = {
    "cluster_mgr": 9500.0,
    "dispatch": 26000.0,
    "schedule": 1100.0,
}
