"""ServingRuntime and ClusterServingRuntime serving.kserve.io/v1alpha1, checked strictly and typed.

Knows what selection and rendering need: formats, protocols, one kserve-container, labels and annotations of the
pods. Fields of ModelMesh and of multi-node runtimes are accepted, since clusters have such runtimes; the ones
that make a runtime unfit (multiModel, workerSpec) are kept, so that selection can say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kserve_ext.api import annotations as table
from kserve_ext.api.kserve import schema
from kserve_ext.api.kserve.resources import (
    CONTAINER,
    Container,
    Document,
    Meta,
    container,
    given_annotations,
    metadata,
)
from kserve_ext.api.kserve.schema import Object, ignored
from kserve_ext.api.problems import Findings

CONTAINER_NAME: Final = "kserve-container"
_FORMAT: Final = Object(
    {
        "name": schema.text,
        "version": schema.text,
        "autoSelect": schema.boolean,
        "priority": schema.integer(1),
    },
    required=("name",),
)
SPEC: Final = Object(
    {
        "supportedModelFormats": schema.items(_FORMAT),
        "protocolVersions": schema.texts,
        "multiModel": schema.boolean,
        "disabled": schema.boolean,
        "containers": schema.items(CONTAINER),
        "labels": schema.labels,
        "annotations": schema.labels,
        "workerSpec": schema.anything,
        "nodeSelector": schema.labels,
        **{
            name: ignored()
            for name in (
                "volumes",
                "affinity",
                "tolerations",
                "imagePullSecrets",
                "hostIPC",
                "schedulerName",
                "resourceClaims",
                "grpcEndpoint",
                "grpcDataEndpoint",
                "httpDataEndpoint",
                "replicas",
                "storageHelper",
                "builtInAdapter",
            )
        },
    },
    required=("containers",),
)
DOCUMENT: Final = schema.document("serving.kserve.io/v1alpha1", SPEC)


@dataclass(frozen=True, slots=True)
class Format:
    """One entry of supportedModelFormats; priority 0 = not given."""

    name: str
    version: str = ""
    auto_select: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ServingRuntime:
    """A runtime of either kind: cluster-wide ones have no namespace."""

    meta: Meta
    container: Container
    formats: tuple[Format, ...] = ()
    protocols: tuple[str, ...] = ()
    disabled: bool = False
    multi_model: bool = False
    multi_node: bool = False
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    node_selector: Mapping[str, str] | None = None

    @property
    def cluster(self) -> bool:
        return not self.meta.namespace

    @property
    def title(self) -> str:
        """For messages."""
        return f"{'ClusterServingRuntime' if self.cluster else 'ServingRuntime'} {self.meta.name}"


def read(document: Document, findings: Findings) -> ServingRuntime | None:
    """The typed object, or None when there are problems; these and the warnings are in the findings."""
    DOCUMENT(document, "", findings)
    meta = metadata(document, document.get("kind") == "ServingRuntime", findings)
    sound = bool(findings)
    table.read(given_annotations(document, "spec"), findings, "spec.annotations")
    if not sound:
        return None
    spec: Document = document["spec"]
    containers = {item["name"]: item for item in spec["containers"]}
    if CONTAINER_NAME not in containers:
        findings.problem(
            "spec.containers",
            f"none is named {CONTAINER_NAME}",
            f"name the container that serves {CONTAINER_NAME}",
            list(containers),
        )
        return None
    for name in containers:
        if name != CONTAINER_NAME:
            findings.warn(f"spec.containers[{name}]: sidecars are not run in the embedded cluster")
    if not findings:
        return None
    return ServingRuntime(
        meta=meta,
        container=container(containers[CONTAINER_NAME]),
        formats=tuple(
            Format(f["name"], str(f.get("version") or ""), bool(f.get("autoSelect")), f.get("priority") or 0)
            for f in spec.get("supportedModelFormats") or ()
        ),
        protocols=tuple(spec.get("protocolVersions") or ()),
        disabled=bool(spec.get("disabled")),
        multi_model=bool(spec.get("multiModel")),
        multi_node=spec.get("workerSpec") is not None,
        labels=spec.get("labels") or {},
        annotations=spec.get("annotations") or {},
        node_selector=spec.get("nodeSelector") or {},
    )
