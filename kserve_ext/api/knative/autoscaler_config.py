"""The ConfigMap config-autoscaler as values: the defaults of everything that an annotation may override.

Keys, defaults and ranges are those of Knative (pkg/autoscaler/config/config.go). EMBEDDED is what `galaxy up`
starts from: there every request goes by way of a Dispatch function, and a service may start at zero. Whether a
bad ConfigMap is refused or the last good one is kept is the reader's decision: see the findings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from kserve_ext.api.problems import Findings, did_you_mean
from kserve_ext.api.readers import Reader, burst_capacity, choice, duration, flag, integer, number, take

KPA: Final = "kpa.autoscaling.knative.dev"
GALAXY: Final = "kserve-galaxy.io"


@dataclass(frozen=True, slots=True)
class AutoscalerConfig:
    container_concurrency_target_percentage: float = 70.0
    container_concurrency_target_default: float = 100.0
    requests_per_second_target_default: float = 200.0
    target_burst_capacity: float = 211.0
    stable_window: float = 60.0
    panic_window_percentage: float = 10.0
    panic_threshold_percentage: float = 200.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    enable_scale_to_zero: bool = True
    scale_to_zero_grace_period: float = 30.0
    scale_to_zero_pod_retention_period: float = 0.0
    pod_autoscaler_class: str = KPA
    activator_capacity: float = 100.0
    initial_scale: int = 1
    allow_zero_initial_scale: bool = False
    min_scale: int = 0
    max_scale: int = 0
    max_scale_limit: int = 0
    scale_down_delay: float = 0.0

    @property
    def utilization(self) -> float:
        """A percentage of at most 1 was meant as a fraction."""
        percent = self.container_concurrency_target_percentage
        return percent if percent <= 1 else percent / 100


EMBEDDED: Final = AutoscalerConfig(target_burst_capacity=-1.0, allow_zero_initial_scale=True)

READERS: Final[Mapping[str, Reader]] = {
    "container-concurrency-target-percentage": number(0, 100, above=True),
    "container-concurrency-target-default": number(0.01),
    "requests-per-second-target-default": number(0.01),
    "target-burst-capacity": burst_capacity(),
    "stable-window": duration("6s", "1h", whole_seconds=True),
    "panic-window-percentage": number(1, 100),
    "panic-threshold-percentage": number(110, 1000),
    "max-scale-up-rate": number(1, above=True),
    "max-scale-down-rate": number(1, above=True),
    "enable-scale-to-zero": flag(),
    "scale-to-zero-grace-period": duration("1ns", "1h"),
    "scale-to-zero-pod-retention-period": duration("0s", "1h"),
    "pod-autoscaler-class": choice(KPA, GALAXY),
    "activator-capacity": number(1),
    "initial-scale": integer(0),
    "allow-zero-initial-scale": flag(),
    "min-scale": integer(0),
    "max-scale": integer(0),
    "max-scale-limit": integer(0),
    "scale-down-delay": duration("0s", "1h", whole_seconds=True),
}


def read(
    data: Mapping[str, str],
    findings: Findings,
    defaults: AutoscalerConfig | None = None,
    path: str = "config-autoscaler data",
    readers: Mapping[str, Reader] = READERS,
) -> AutoscalerConfig:
    """`defaults` with everything that could be read of `data`; the rest is in the findings."""
    values: dict[str, Any] = {}
    for key, text in data.items():
        if key.startswith("_"):
            continue
        if key not in readers:
            findings.warn(f"{path}[{key}]: unknown key, ignored; {did_you_mean(key, readers)}")
            continue
        value = take(readers[key], text, f"{path}[{key}]", findings)
        if value is not None:
            values[key.replace("-", "_")] = value
    config = replace(defaults or AutoscalerConfig(), **values)
    _check_together(config, findings, path)
    return config


def _check_together(config: AutoscalerConfig, findings: Findings, path: str) -> None:
    if config.initial_scale == 0 and not config.allow_zero_initial_scale:
        findings.problem(
            f"{path}[initial-scale]", "0 is not allowed", "set allow-zero-initial-scale to true, or use >= 1"
        )
    if config.max_scale and config.max_scale < config.min_scale:
        findings.problem(
            f"{path}[max-scale]",
            f"is below min-scale ({config.min_scale})",
            "raise max-scale or lower min-scale",
            config.max_scale,
        )
    if config.max_scale_limit and not 0 < config.max_scale <= config.max_scale_limit:
        findings.problem(
            f"{path}[max-scale]",
            "is not within max-scale-limit",
            f"use an integer from 1 to {config.max_scale_limit}",
            config.max_scale,
        )
