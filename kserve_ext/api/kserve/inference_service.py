"""InferenceService serving.kserve.io/v1beta1: KServe's field names and defaults, checked strictly and typed.

Acts on the predictor: model or one custom container, scale bounds, concurrency, timeout, labels, annotations.
Transformer, explainer, canaries and multi-node workers would change what the service answers, so they are
refused rather than ignored. Matches pkg/apis/serving/v1beta1 and its defaulting and validating webhooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kserve_ext.api import annotations as table
from kserve_ext.api.knative import autoscaling
from kserve_ext.api.kserve import schema
from kserve_ext.api.kserve.resources import (
    CONTAINER,
    CONTAINER_FIELDS,
    POD_FIELDS,
    Container,
    Document,
    Meta,
    container,
    given_annotations,
    metadata,
)
from kserve_ext.api.kserve.schema import Object, ignored, refused
from kserve_ext.api.problems import Findings

#: Fields from before `predictor.model`; KServe's webhook rewrites them, and so do we.
LEGACY: Final = (
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
)
PROTOCOLS: Final = ("v1", "v2", "grpc-v1", "grpc-v2")
CONTAINER_NAME: Final = "kserve-container"

_MODEL_FIELDS: Final[Mapping[str, schema.Check | Object]] = {
    **CONTAINER_FIELDS,
    "modelFormat": Object({"name": schema.text, "version": schema.text}, required=("name",)),
    "runtime": schema.text,
    "storageUri": schema.text,
    "storage": refused(
        "credentials of object stores are not read here", "use storageUri with pvc:// or file://"
    ),
    "protocolVersion": schema.one_of(*PROTOCOLS),
    "runtimeVersion": ignored(schema.text),
    "confidential": refused("confidential models are not supported here", "remove it"),
    "name": refused("must be empty", "remove it: the model is named after the service"),
}
_MODEL: Final = Object(_MODEL_FIELDS, required=("modelFormat",))
_LEGACY: Final = Object({k: v for k, v in _MODEL_FIELDS.items() if k != "modelFormat"})
_COMPONENT_FIELDS: Final[Mapping[str, schema.Check | Object]] = {
    "minReplicas": schema.integer(0),
    "maxReplicas": schema.integer(0),
    "scaleTarget": schema.integer(1),
    "scaleMetric": schema.one_of("concurrency", "rps", "cpu", "memory"),
    "containerConcurrency": schema.integer(0),
    "timeout": schema.integer(1),
    "labels": schema.labels,
    "annotations": schema.labels,
    "scaleMetricType": ignored(),
    "autoScaling": ignored(),
    "canaryTrafficPercent": schema.integer(0, 100),
    "logger": ignored(),
    "batcher": ignored(),
    "deploymentStrategy": ignored(),
}
_URIS: Final = schema.items(Object({"uri": schema.text, "mountPath": schema.text}, required=("uri",)))
_NO_PART: Final = "is a second component, which the embedded cluster does not run"
PREDICTOR: Final = Object(
    {
        "model": _MODEL,
        **dict.fromkeys(LEGACY, _LEGACY),
        "containers": schema.items(CONTAINER),
        "storageUris": _URIS,
        "storageContainerName": ignored(schema.text),
        "name": ignored(schema.text),
        "workerSpec": refused("several nodes for one instance are not supported here", "remove it"),
        **_COMPONENT_FIELDS,
        **POD_FIELDS,
    }
)
SPEC: Final = Object(
    {
        "predictor": PREDICTOR,
        "transformer": refused(_NO_PART, "apply it as an InferenceService of its own"),
        "explainer": refused(_NO_PART, "apply it as an InferenceService of its own"),
        "canary": refused("canaries are not supported here", "apply the candidate as a service of its own"),
        "tracing": ignored(),
    },
    required=("predictor",),
)
DOCUMENT: Final = schema.document("serving.kserve.io/v1beta1", SPEC)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """predictor.model without its container fields."""

    format: str
    version: str = ""
    runtime: str = ""
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class InferenceService:
    """An InferenceService as far as the embedded cluster acts on it."""

    meta: Meta
    model: ModelSpec | None  # None = custom container
    container: Container
    storage_uri: str = ""
    mount: str = "/mnt/models"
    min_replicas: int = 1
    max_replicas: int = 0
    scale_target: int | None = None
    scale_metric: str = ""
    concurrency: int = 0
    timeout_s: int | None = None
    drain_s: int | None = None
    labels: Mapping[str, str] | None = None  # predictor.labels
    annotations: Mapping[str, str] | None = None  # predictor.annotations
    field: str = "spec.predictor.model"  # where its container fields are, for messages
    uri_field: str = "spec.predictor.model.storageUri"
    priority_class: str = ""
    node_selector: Mapping[str, str] | None = None

    @property
    def stopped(self) -> bool:
        return self.meta.annotations.get("serving.kserve.io/stop") == "true"


def read(document: Document, findings: Findings) -> InferenceService | None:
    """The typed object, or None when there are problems; these and the warnings are in the findings."""
    DOCUMENT(document, "", findings)
    meta = metadata(document, True, findings)
    sound = bool(findings)
    notes = {**given_annotations(document, "metadata"), **given_annotations(document, "spec", "predictor")}
    table.read(notes, findings)
    service = _typed(meta, document["spec"]["predictor"], findings) if sound else None
    if findings:
        return service
    # Of one without problems render.py reads these, with what its runtime adds.
    autoscaling.check(notes, findings)
    return None


def _typed(meta: Meta, predictor: Document, findings: Findings) -> InferenceService | None:
    _bounds(predictor, findings)
    implementation = _implementation(predictor, findings)
    if implementation is None:
        return None
    name, given = implementation
    custom = name == "containers"
    field = "spec.predictor.containers[0]" if custom else f"spec.predictor.{name}"
    for item in given.get("env") or ():
        if item["name"] == "PYTHONPATH":
            findings.problem(
                f"{field}.env", "PYTHONPATH may not be set", "remove it, as KServe's webhook asks"
            )
    uri, mount, uri_field = _storage(predictor, given, field, findings)
    return InferenceService(
        meta=meta,
        model=None if custom else _model(name, given),
        container=container({**given, "name": CONTAINER_NAME}),
        storage_uri=uri,
        mount=mount,
        min_replicas=predictor.get("minReplicas", 1),
        max_replicas=predictor.get("maxReplicas", 0),
        scale_target=predictor.get("scaleTarget"),
        scale_metric=predictor.get("scaleMetric") or "",
        concurrency=predictor.get("containerConcurrency") or 0,
        timeout_s=predictor.get("timeout"),
        drain_s=predictor.get("terminationGracePeriodSeconds"),
        labels=predictor.get("labels") or {},
        annotations=predictor.get("annotations") or {},
        field=field,
        uri_field=uri_field,
        priority_class=predictor.get("priorityClassName") or "",
        node_selector=predictor.get("nodeSelector") or {},
    )


def _implementation(predictor: Document, findings: Findings) -> tuple[str, Document] | None:
    given = [name for name in ("model", *LEGACY, "containers") if predictor.get(name)]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found none"
        findings.problem(
            "spec.predictor", f"needs exactly one implementation, {found}", "give either model or containers"
        )
        return None
    name = given[0]
    if name != "containers":
        return name, predictor[name]
    containers = predictor["containers"]
    if len(containers) > 1:
        findings.problem(
            "spec.predictor.containers",
            "an instance is one process in the embedded cluster",
            "leave just the container that serves",
            [item["name"] for item in containers],
        )
        return None
    return name, containers[0]


def _model(name: str, given: Document) -> ModelSpec:
    if name == "model":
        form = given["modelFormat"]
        protocol = given.get("protocolVersion") or ("v2" if form["name"] in ("triton", "vLLM") else "")
        return ModelSpec(form["name"], str(form.get("version") or ""), given.get("runtime") or "", protocol)
    protocol = given.get("protocolVersion") or ("v2" if name in ("huggingface", "onnx", "triton") else "")
    return ModelSpec(name, "", given.get("runtime") or "", protocol)


def _storage(predictor: Document, given: Document, field: str, findings: Findings) -> tuple[str, str, str]:
    single = given.get("storageUri") or ""
    several = predictor.get("storageUris") or []
    field = f"{field}.storageUri"
    if not single:  # a custom container declares it by env, and KServe reads that as storageUri
        single = next(
            (e.get("value") or "" for e in given.get("env") or () if e["name"] == "STORAGE_URI"), ""
        )
    if single and several:
        findings.problem("spec.predictor.storageUris", "storageUri is given, too", "keep one of the two")
    if len(several) > 1:
        findings.problem(
            "spec.predictor.storageUris",
            "the embedded cluster mounts one model",
            "leave one entry",
            len(several),
        )
    if several and not single:
        return (
            several[0]["uri"],
            several[0].get("mountPath") or "/mnt/models",
            "spec.predictor.storageUris[0].uri",
        )
    return single, "/mnt/models", field


def _bounds(predictor: Document, findings: Findings) -> None:
    low, high = predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0)
    if high and low > high:
        findings.problem(
            "spec.predictor.maxReplicas",
            f"is below minReplicas ({low}; 1 if not given)",
            "raise maxReplicas or lower minReplicas",
            high,
        )
    if predictor.get("scaleMetric") in ("cpu", "memory"):
        findings.problem(
            "spec.predictor.scaleMetric",
            "KPA scales by requests only",
            "use concurrency or rps",
            predictor["scaleMetric"],
        )
    if predictor.get("canaryTrafficPercent") not in (None, 100):
        findings.problem(
            "spec.predictor.canaryTrafficPercent",
            "splitting traffic between revisions is not supported here",
            "remove it: a new revision takes all traffic once it is ready",
            predictor["canaryTrafficPercent"],
        )
