"""What the autoscaler reads of Knative's ConfigMaps: config-autoscaler, -network, -deployment, -logging and others.

Keys and defaults are Knative's. Ranges are no narrower than those that Knative accepts, since a ConfigMap that the
webhook let through has to work. One that is wrong leaves its findings, and whoever reads keeps the last good one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from kserve_ext.api.knative import autoscaler_config
from kserve_ext.api.knative.autoscaler_config import READERS, AutoscalerConfig
from kserve_ext.api.knative.observability import Observability
from kserve_ext.api.problems import Findings
from kserve_ext.api.readers import Reader, choice, duration, flag, integer, number, take
from kserve_ext.core.knative.sampling import MeshMode

MAX_BUCKETS: Final = 10
#: zap's, and what the logging module calls them; the last three are its error
LOG_LEVELS: Final = {
    "debug": 10,
    "info": 20,
    "warn": 30,
    "error": 40,
    "dpanic": 40,
    "panic": 40,
    "fatal": 40,
}
_LONGEST: Final = "8760h"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Network:
    mesh: MeshMode = MeshMode.AUTO
    #: pods are reached by address only with a header that tells the mesh so
    passthrough: bool = False


@dataclass(frozen=True, slots=True)
class LeaderElection:
    buckets: int = 1
    lease_s: float = 60.0
    renew_s: float = 40.0
    retry_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """All of them, as they are in force."""

    autoscaler: AutoscalerConfig = field(default_factory=AutoscalerConfig)
    network: Network = Network()
    progress_deadline_s: float = 600.0
    leader_election: LeaderElection = LeaderElection()
    log_level: int = LOG_LEVELS["info"]
    observability: Observability = field(default_factory=Observability)


_AUTOSCALER: Final[Mapping[str, Reader]] = {
    **READERS,
    "panic-threshold-percentage": number(0, above=True),
    "scale-to-zero-grace-period": duration("1ns", _LONGEST),
    "scale-to-zero-pod-retention-period": duration("0s", _LONGEST),
    "scale-down-delay": duration("0s", _LONGEST, whole_seconds=True),
    "pod-autoscaler-class": Reader("any class", str),  # the webhook writes it; which class is ours we know
}


def autoscaler(data: Mapping[str, str], findings: Findings) -> AutoscalerConfig:
    return autoscaler_config.read(data, findings, readers=_AUTOSCALER)


def network(data: Mapping[str, str], findings: Findings) -> Network:
    """An unknown mesh mode counts as auto, as in Knative."""
    modes = {mode.value: mode for mode in MeshMode}
    mesh = modes.get(data.get("mesh-compatibility-mode", "").lower(), MeshMode.AUTO)
    passthrough = _get(data, "enable-mesh-pod-addressability", flag(), False, "config-network", findings)
    return Network(mesh, passthrough)


def progress_deadline_s(data: Mapping[str, str], findings: Findings) -> float:
    reader = duration("1s", _LONGEST, whole_seconds=True)
    former = _get(data, "progressDeadline", reader, 600.0, "config-deployment", findings)
    return _get(data, "progress-deadline", reader, former, "config-deployment", findings)


def leader_election(data: Mapping[str, str], findings: Findings) -> LeaderElection:
    where = "config-leader-election"
    time = duration("1s", _LONGEST)
    found: dict[str, Any] = {"buckets": _get(data, "buckets", integer(1, MAX_BUCKETS), 1, where, findings)}
    for name, key, old in (
        ("lease_s", "lease-duration", "leaseDuration"),
        ("renew_s", "renew-deadline", "renewDeadline"),
        ("retry_s", "retry-period", "retryPeriod"),
    ):
        default = getattr(LeaderElection(), name)
        found[name] = _get(data, key, time, _get(data, old, time, default, where, findings), where, findings)
    if not found["retry_s"] < found["renew_s"] < found["lease_s"]:
        findings.problem(
            f"{where} data[renew-deadline]",
            "is not between retry-period and lease-duration",
            "keep retry-period < renew-deadline < lease-duration, such as 10s, 40s and 60s",
            found["renew_s"],
        )
    return LeaderElection(**found)


def log_level(part: str) -> Callable[[Mapping[str, str], Findings], int]:
    """Reads a part's level as the logging module has it: its own, else that of zap-logger-config, else info."""

    def read(data: Mapping[str, str], findings: Findings) -> int:
        given = {key: value for key, value in data.items() if value}  # an empty level counts as none
        level = _get(given, f"loglevel.{part}", choice(*LOG_LEVELS), "", "config-logging", findings)
        return LOG_LEVELS[level or _zap_level(given, findings)]

    return read


def _zap_level(data: Mapping[str, str], findings: Findings) -> str:
    key = "zap-logger-config"
    try:
        config = json.loads(data.get(key, "{}"))
        level = config.get("level", "info")
    except (ValueError, AttributeError, RecursionError) as error:
        findings.problem(
            f"config-logging data[{key}]", f"not a JSON object: {error}", 'write {"level": "info"}'
        )
        return "info"
    where = f"config-logging data[{key}].level"
    found: str | None = take(choice(*LOG_LEVELS), str(level).lower(), where, findings)
    return found or "info"


def _get(data: Mapping[str, str], key: str, reader: Reader, default: T, where: str, findings: Findings) -> T:
    if key not in data:
        return default
    value = take(reader, data[key], f"{where} data[{key}]", findings)
    return default if value is None else value
