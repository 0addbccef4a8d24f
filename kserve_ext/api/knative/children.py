"""What a PodAutoscaler owns: its ServerlessService (networking.internal) and its Metric (autoscaling.internal).

Made as pkg/reconciler/autoscaling/resources (sks.go, metric.go) makes them, read as knative.dev/networking and
pkg/apis/autoscaling/v1alpha1 define them. Windows in a Metric are whole nanoseconds.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from kserve_ext.api.knative.autoscaling import PREFIX
from kserve_ext.api.knative.conditions import (
    READY,
    TRUE,
    UNKNOWN,
    Condition,
    Document,
    dated,
    find,
    since,
    status_of,
    text_map,
)
from kserve_ext.api.knative.pa import Services, Settings
from kserve_ext.core.knative.pod_autoscaler import Mode, Service
from kserve_ext.core.scaling.window import Algorithm

METRIC_ANNOTATION: Final = PREFIX + "metric"
_ALGORITHMS: Final = (PREFIX + "metric-aggregation-algorithm", PREFIX + "metricAggregationAlgorithm")
#: The condition of a ServerlessService that says since when it leads to activators.
PROXYING: Final = "ActivatorEndpointsPopulated"
_SECOND: Final = 10**9


def owned(child: Document, pa: Document) -> bool:
    references = child["metadata"].get("ownerReferences") or ()
    controller = next((ref for ref in references if ref.get("controller")), None)
    return controller is not None and controller.get("uid") == pa["metadata"].get("uid")


def sks_spec(pa: Document, mode: Mode, activators: int) -> Document:
    spec = pa.get("spec") or {}
    return {
        "mode": mode.value,
        "objectRef": spec.get("scaleTargetRef") or {},
        "protocolType": spec.get("protocolType", ""),
        "numActivators": activators,
    }


def make_sks(pa: Document, mode: Mode, activators: int) -> Document:
    annotations = text_map(pa["metadata"].get("annotations"))
    kept = {key: value for key, value in annotations.items() if key != METRIC_ANNOTATION}
    return {"metadata": _metadata(pa, kept), "spec": sks_spec(pa, mode, activators)}


def service(sks: Document) -> Service:
    """What decides."""
    status = sks.get("status") or {}
    conditions = status.get("conditions")
    proxying = since(conditions, PROXYING) if status_of(conditions, PROXYING) == TRUE else None
    mode = (sks.get("spec") or {}).get("mode")
    return Service(
        Mode.PROXY if mode == Mode.PROXY.value else Mode.SERVE,
        str(status.get("serviceName") or ""),
        str(status.get("privateServiceName") or ""),
        proxying,
    )


def services(sks: Document) -> Services:
    """What the PodAutoscaler's status says of it."""
    status = sks.get("status") or {}
    conditions = status.get("conditions")
    observed = status.get("observedGeneration", 0) == sks["metadata"].get("generation", 0)
    return Services(
        str(status.get("serviceName") or ""),
        str(status.get("privateServiceName") or ""),
        observed and status_of(conditions, READY) == TRUE,
        str((find(conditions, READY) or {}).get("message") or ""),
    )


def metric_spec(found: Settings, private_service: str) -> Document:
    return {
        "stableWindow": round(found.spec.stable_window_s * _SECOND),
        "panicWindow": round(found.panic_window_s * _SECOND),
        "scrapeTarget": private_service if found.scraped else "",
    }


def make_metric(pa: Document, found: Settings, private_service: str) -> Document:
    annotations = dict(text_map(pa["metadata"].get("annotations")))
    return {"metadata": _metadata(pa, annotations), "spec": metric_spec(found, private_service)}


class Windows(NamedTuple):
    """What a Metric asks to be collected. Without a scrape target the activators' reports are all there is."""

    stable_s: float
    panic_s: float
    target: str
    algorithm: Algorithm


def windows(metric: Document) -> Windows | str:
    """Or what is wrong with it: a Metric can be written by anybody."""
    spec = metric.get("spec") or {}
    lengths = []
    for name in ("stableWindow", "panicWindow"):
        length = spec.get(name)
        if not isinstance(length, int) or not _SECOND <= length <= 3600 * _SECOND:
            return f"spec.{name}: {length!r} is not allowed; use nanoseconds from one second to one hour"
        lengths.append(length / _SECOND)
    annotations = text_map(metric["metadata"].get("annotations"))
    chosen = next((annotations[key] for key in _ALGORITHMS if key in annotations), "")
    weighted = chosen in ("weighted-exponential", "weightedExponential")
    return Windows(
        lengths[0],
        lengths[1],
        str(spec.get("scrapeTarget") or ""),
        "weighted-exponential" if weighted else "linear",
    )


class Trouble(NamedTuple):
    """Why there is no data."""

    reason: str
    message: str

    @property
    def status(self) -> str:
        return UNKNOWN if self.reason == "NoEndpoints" else "False"


def metric_status(metric: Document, trouble: Trouble | None, now: float) -> Document:
    before = metric.get("status") or {}
    state = Condition(READY, TRUE)
    if trouble is not None:
        state = Condition(READY, trouble.status, trouble.reason, trouble.message)
    return {
        **before,
        "observedGeneration": metric["metadata"].get("generation", 0),
        "conditions": dated([state], before.get("conditions"), now),
    }


def _metadata(pa: Document, annotations: dict[str, str]) -> dict[str, Any]:
    metadata = pa["metadata"]
    return {
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": dict(text_map(metadata.get("labels"))),
        "annotations": annotations,
        "ownerReferences": [
            {
                "apiVersion": "autoscaling.internal.knative.dev/v1alpha1",
                "kind": "PodAutoscaler",
                "name": metadata["name"],
                "uid": metadata.get("uid", ""),
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
