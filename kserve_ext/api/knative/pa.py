"""PodAutoscaler autoscaling.internal.knative.dev/v1alpha1: its annotations as a ScalingSpec, its status in and out.

Fields, conditions, reasons and messages are those of pkg/apis/autoscaling/v1alpha1 (pa_types.go, pa_lifecycle.go).
An annotation that can't be read counts as absent, as in Knative; here the status says so, in a condition of its
own that Ready doesn't depend on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kserve_ext.api import durations
from kserve_ext.api.knative import autoscaling
from kserve_ext.api.knative.autoscaler_config import GALAXY, KPA, AutoscalerConfig
from kserve_ext.api.knative.conditions import (
    FALSE,
    TRUE,
    UNKNOWN,
    Condition,
    Document,
    dated,
    ready,
    since,
    status_of,
    text_map,
)
from kserve_ext.api.problems import Findings, Problem
from kserve_ext.core.facts import Scale
from kserve_ext.core.knative.pod_autoscaler import Known, Outcome, Pods
from kserve_ext.core.scaling.scale_to_zero import Phase
from kserve_ext.core.scaling.spec import ScalingSpec
from kserve_ext.core.scaling.window import panic_window_s

CLASSES: Final = (KPA, GALAXY)
CLASS_ANNOTATION: Final = autoscaling.PREFIX + "class"
PROGRESS_DEADLINE: Final = "serving.knative.dev/progress-deadline"
REVISION_LABEL: Final = "serving.knative.dev/revision"
SERVICE_LABEL: Final = "serving.knative.dev/service"
CONFIGURATION_LABEL: Final = "serving.knative.dev/configuration"

ACTIVE, INITIALIZED, SKS_READY = "Active", "ScaleTargetInitialized", "SKSReady"
UNDERSTOOD: Final = "AnnotationsUnderstood"

#: The Deployment says why its pods fail at its progress deadline; ours must not take them away before.
ACTIVATION_BUFFER_S: Final = 30.0

_QUEUED = "Queued", "Requests to the target are being buffered as resources are provisioned."
_NO_TRAFFIC = "NoTraffic", "The target is not receiving traffic."
_TIMED_OUT = "TimedOut", "The target could not be activated."
NO_PRIVATE_SERVICE: Final = "No Private Service Name"
_PHASES: Final[Mapping[str, Phase]] = {TRUE: "active", FALSE: "inactive", UNKNOWN: "activating"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What one PodAutoscaler asks for, with the cluster's defaults filled in."""

    spec: ScalingSpec
    scale: Scale
    problems: tuple[str, ...] = ()
    reason: str = ""  # of the first
    #: Of the status, beside Knative's own: what else there is to say of it, and annotations for who asks for more.
    conditions: tuple[Condition, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def panic_window_s(self) -> float:
        return panic_window_s(self.spec.stable_window_s, self.scale.panic_window_percent)

    @property
    def scraped(self) -> bool:
        """With every request by way of an activator, its reports say everything."""
        return self.spec.target_burst_capacity != -1


def is_ours(pa: Document) -> bool:
    """Of a class that is served here, and not about to be gone."""
    metadata = pa["metadata"]
    class_ = text_map(metadata.get("annotations")).get(CLASS_ANNOTATION)
    return class_ in CLASSES and not metadata.get("deletionTimestamp")


def settings(pa: Document, config: AutoscalerConfig, progress_deadline_s: float) -> Settings:
    annotations = text_map(pa["metadata"].get("annotations"))
    spec = pa.get("spec") or {}
    findings = Findings()
    concurrency = spec.get("containerConcurrency") or 0
    if not isinstance(concurrency, int):
        findings.problem(
            "spec.containerConcurrency", "is no integer, ignored", "use an integer >= 0", concurrency
        )
        concurrency = 0
    scale = autoscaling.read(annotations, findings, config, concurrency=concurrency)
    if scale.initial == 0 and not config.allow_zero_initial_scale:
        scale = scale._replace(initial=config.initial_scale)
    if PROGRESS_DEADLINE in annotations:
        try:
            progress_deadline_s = durations.seconds(annotations[PROGRESS_DEADLINE])
        except ValueError as wrong:
            findings.problem(f"metadata.annotations[{PROGRESS_DEADLINE}]", "ignored", str(wrong))
    return Settings(
        ScalingSpec.of(
            scale,
            concurrency,
            reachable=spec.get("reachability") != "Unreachable",
            start_deadline_s=progress_deadline_s + ACTIVATION_BUFFER_S,
        ),
        scale,
        tuple(str(problem) for problem in findings.problems),
        _reason(findings.problems[0]) if findings.problems else "",
    )


def known(pa: Document, status: Document, now: float) -> Known:
    """`status` may be newer than the one in `pa`: what was decided last, but isn't written yet."""
    conditions = status.get("conditions")
    begun = since(conditions, ACTIVE)
    return Known(
        _PHASES.get(status_of(conditions, ACTIVE), "activating"),
        now if begun is None else begun,
        status_of(conditions, INITIALIZED) == TRUE,
        str(status.get("serviceName") or ""),
    )


@dataclass(frozen=True, slots=True)
class Services:
    """What the status says of the ServerlessService. `ready` is None while there is none to ask."""

    public: str = ""
    private: str = ""
    ready: bool | None = None
    message: str = ""


def status(
    pa: Document,
    before: Document,
    outcome: Outcome,
    services: Services,
    pods: Pods,
    found: Settings,
    now: float,
) -> Document:
    """The whole new status; `before` is what it was."""
    active = _active(outcome)
    initialized = Condition(INITIALIZED, TRUE if outcome.initialized else UNKNOWN)
    sks = Condition(SKS_READY, TRUE)
    if not services.ready:
        message = NO_PRIVATE_SERVICE if services.ready is None else services.message
        sks = Condition(SKS_READY, UNKNOWN, "NotReady", message)
    desired = outcome.want
    if desired < 0 and isinstance(before.get("desiredScale"), int) and before["desiredScale"] >= 0:
        desired = before["desiredScale"]  # known before a restart, and soon known again
    conditions = [active, initialized, sks, ready(active, (sks, initialized)), *_understood(found)]
    conditions += found.conditions
    kept = _kept(before)
    if found.notes:
        kept["annotations"] = {**text_map(kept.get("annotations")), **dict(found.notes)}
    return {
        **kept,
        "observedGeneration": pa["metadata"].get("generation", 0),
        "conditions": dated(conditions, before.get("conditions"), now),
        "serviceName": services.public or str(before.get("serviceName") or ""),
        "metricsServiceName": services.private or str(before.get("metricsServiceName") or ""),
        "desiredScale": desired,
        "actualScale": pods.ready,
    }


def not_owned(pa: Document, before: Document, kind: str, name: str, now: float) -> Document:
    """The status of one whose ServerlessService or Metric belongs to somebody else."""
    active = Condition(ACTIVE, FALSE, "NotOwned", f'There is an existing {kind} "{name}" that we do not own.')
    conditions = before.get("conditions")
    others = [Condition(name, status_of(conditions, name)) for name in (INITIALIZED, SKS_READY)]
    return {
        "serviceName": "",
        "metricsServiceName": "",
        **before,
        "observedGeneration": pa["metadata"].get("generation", 0),
        "conditions": dated([active, *others, ready(active, others)], conditions, now),
    }


def _active(outcome: Outcome) -> Condition:
    if outcome.phase == "active":
        return Condition(ACTIVE, TRUE)
    if outcome.phase == "activating":
        return Condition(ACTIVE, UNKNOWN, *_QUEUED)
    return Condition(ACTIVE, FALSE, *(_TIMED_OUT if outcome.timed_out else _NO_TRAFFIC))


def _understood(found: Settings) -> tuple[Condition, ...]:
    if not found.problems:
        return ()
    return (Condition(UNDERSTOOD, FALSE, found.reason, "; ".join(found.problems), "Warning"),)


def _reason(problem: Problem) -> str:
    """What kind of problem it is: one that can't be read is another than one that can't be had."""
    if not problem.field.startswith("metadata.annotations"):
        return "InvalidField"
    if "this cluster" in problem.what:
        return "NotAllowedByCluster"
    if problem.what.startswith(("is below min-scale", "is outside the scale bounds")):
        return "ContradictsAnnotation"
    return "InvalidAnnotation"


def _kept(before: Document) -> dict[str, Any]:
    """Fields of the status that aren't ours (annotations of duck types)."""
    return {k: v for k, v in before.items() if k not in ("conditions", "desiredScale", "actualScale")}
