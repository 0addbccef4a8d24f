"""Knative's autoscaling annotations and KServe's scale fields, as the Scale that a Revision carries.

Keys, camelCase aliases, ranges and defaults are Knative's (pkg/apis/autoscaling); where KServe's predictor has a
field for the same thing, the field wins, as KServe's own reconciler does it. Stricter than Knative in one
point: an unknown key with this prefix is a problem, because a mistyped annotation would silently do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from kserve_ext.api.knative.autoscaler_config import GALAXY, KPA, AutoscalerConfig
from kserve_ext.api.problems import Findings, did_you_mean
from kserve_ext.api.readers import Reader, burst_capacity, choice, duration, integer, number, take
from kserve_ext.core.facts import Scale

PREFIX: Final = "autoscaling.knative.dev/"


class Component(Protocol):
    """KServe's fields of a component, e.g. inference_service.Predictor."""

    @property
    def min_replicas(self) -> int: ...
    @property
    def max_replicas(self) -> int: ...
    @property
    def scale_target(self) -> int | None: ...
    @property
    def scale_metric(self) -> str: ...
    @property
    def concurrency(self) -> int: ...


class Row(NamedTuple):
    """One annotation: how its value is read, and its other spelling."""

    reader: Reader
    alias: str = ""


TABLE: Final[Mapping[str, Row]] = {
    "class": Row(choice(KPA, GALAXY)),
    "metric": Row(choice("concurrency", "rps")),
    "target": Row(number(0.01)),
    "target-utilization-percentage": Row(number(1, 100), "targetUtilizationPercentage"),
    "target-burst-capacity": Row(burst_capacity(), "targetBurstCapacity"),
    "min-scale": Row(integer(0), "minScale"),
    "max-scale": Row(integer(0), "maxScale"),
    "initial-scale": Row(integer(0), "initialScale"),
    "activation-scale": Row(integer(2)),
    "window": Row(duration("6s", "1h", whole_seconds=True)),
    "panic-window-percentage": Row(number(1, 100), "panicWindowPercentage"),
    "panic-threshold-percentage": Row(number(110, 1000), "panicThresholdPercentage"),
    "scale-down-delay": Row(duration("0s", "1h", whole_seconds=True), "scaleDownDelay"),
    "scale-to-zero-pod-retention-period": Row(duration("0s", "1h"), "scaleToZeroPodRetentionPeriod"),
    "metric-aggregation-algorithm": Row(
        choice("linear", "weighted-exponential", "weightedExponential"), "metricAggregationAlgorithm"
    ),
}
_NAMES: Final = {spelling: name for name, row in TABLE.items() for spelling in (name, row.alias) if spelling}
_OF_KSERVE: Final = {"min-scale": "minReplicas", "max-scale": "maxReplicas"}


def read(
    annotations: Mapping[str, str],
    findings: Findings,
    config: AutoscalerConfig,
    component: Component | None = None,
    concurrency: int = 0,
    path: str = "metadata.annotations",
) -> Scale:
    """The Scale of what could be read; everything wrong is in the findings, never only the first.

    With a `component` KServe's rules apply, without one those of a plain Knative revision, whose hard limit
    (containerConcurrency) is `concurrency`.
    """
    values = _values(annotations, findings, kserve=component is not None, path=path)
    if component is not None:
        concurrency = component.concurrency
        values["min-scale"] = component.min_replicas
        if component.max_replicas:
            values["max-scale"] = component.max_replicas
        if component.scale_target is not None:
            values["target"] = float(component.scale_target)
        if component.scale_metric in ("concurrency", "rps"):  # others are the component reader's problem
            values["metric"] = component.scale_metric
        if values.get("initial-scale") == 0 and not config.allow_zero_initial_scale:
            findings.warn(f"{path}[{PREFIX}initial-scale]: 0 is not allowed by this cluster, ignored")
            del values["initial-scale"]
    _check_together(values, findings, config, path, kserve=component is not None)

    metric = values.get("metric", "concurrency")
    algorithm = values.get("metric-aggregation-algorithm", "linear")
    percent = values.get("target-utilization-percentage")
    default_utilization = 0.7 if metric == "rps" else config.utilization
    return Scale(
        min=values.get("min-scale", config.min_scale),
        max=values.get("max-scale", config.max_scale),
        initial=values.get("initial-scale", config.initial_scale),
        activation=values.get("activation-scale", 1),
        metric=metric,
        target=_total(values.get("target"), metric, concurrency, config),
        utilization=default_utilization if percent is None else percent / 100,
        target_burst_capacity=values.get("target-burst-capacity", config.target_burst_capacity),
        window_s=values.get("window", config.stable_window),
        panic_window_percent=values.get("panic-window-percentage", config.panic_window_percentage),
        panic_threshold_percent=values.get("panic-threshold-percentage", config.panic_threshold_percentage),
        max_up_rate=config.max_scale_up_rate,
        max_down_rate=config.max_scale_down_rate,
        scale_down_delay_s=values.get("scale-down-delay", config.scale_down_delay),
        grace_s=config.scale_to_zero_grace_period,
        retention_s=values.get(
            "scale-to-zero-pod-retention-period", config.scale_to_zero_pod_retention_period
        ),
        algorithm="linear" if algorithm == "linear" else "weighted-exponential",
        to_zero=config.enable_scale_to_zero,
    )


def check(annotations: Mapping[str, str], findings: Findings) -> None:
    """Each by itself, of an InferenceService that has other problems, so that no Scale is made of them."""
    _values(annotations, findings, kserve=True, path="metadata.annotations")


def _values(annotations: Mapping[str, str], findings: Findings, kserve: bool, path: str) -> dict[str, Any]:
    """Values by name. Of two spellings of one key, the one with dashes counts."""
    values: dict[str, Any] = {}
    for key, text in annotations.items():
        if not key.startswith(PREFIX):
            continue
        where = f"{path}[{key}]"
        name = _NAMES.get(key.removeprefix(PREFIX))
        if name is None:
            known = [PREFIX + spelling for spelling in TABLE]
            findings.problem(where, "unknown annotation", did_you_mean(key, known))
        elif kserve and name in _OF_KSERVE:
            findings.warn(f"{where}: ignored, as in KServe; use spec.predictor.{_OF_KSERVE[name]}")
        elif key != PREFIX + name and PREFIX + name in annotations:
            findings.warn(f"{where}: ignored, because {PREFIX}{name} is given too")
        else:
            value = take(TABLE[name].reader, text, where, findings)
            if value is not None:
                values[name] = value
    return values


def _check_together(
    values: Mapping[str, Any], findings: Findings, config: AutoscalerConfig, path: str, kserve: bool
) -> None:
    """Values that are allowed each by itself, but not together."""
    low, high = values.get("min-scale", config.min_scale), values.get("max-scale", config.max_scale)
    upper = "spec.predictor.maxReplicas" if kserve else f"{path}[{PREFIX}max-scale]"
    if not kserve and high and high < low:
        findings.problem(upper, f"is below min-scale ({low})", "raise max-scale or lower min-scale", high)
    if config.max_scale_limit and not 0 < high <= config.max_scale_limit:
        what = "is unlimited" if high == 0 else "is too high"
        findings.problem(
            upper, f"{what} for this cluster", f"use an integer from 1 to {config.max_scale_limit}", high
        )
    activation = values.get("activation-scale")
    if activation is not None and (activation < low or (high and activation > high)):
        bounds = f"from {low} to {high}" if high else f">= {low}"
        findings.problem(
            f"{path}[{PREFIX}activation-scale]",
            "is outside the scale bounds",
            f"use an integer {bounds} or change the bounds",
            activation,
        )
    if values.get("initial-scale") == 0 and not config.allow_zero_initial_scale:
        findings.problem(
            f"{path}[{PREFIX}initial-scale]",
            "0 is not allowed by this cluster",
            "use an integer >= 1, or set allow-zero-initial-scale in config-autoscaler",
        )


def _total(target: float | None, metric: str, concurrency: int, config: AutoscalerConfig) -> float:
    """What one instance can take; more than the hard limit is never aimed at."""
    if metric == "rps":
        return config.requests_per_second_target_default if target is None else target
    limit = float(concurrency) if concurrency else None
    if target is None:
        return limit or config.container_concurrency_target_default
    return min(target, limit) if limit else target
