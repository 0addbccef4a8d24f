"""Documents for the tests of objects: YAML in, typed object and findings out."""

from __future__ import annotations

from typing import Any

import yaml

from kserve_ext.api.kserve import inference_service, serving_runtime
from kserve_ext.api.kserve.inference_service import InferenceService
from kserve_ext.api.kserve.serving_runtime import ServingRuntime
from kserve_ext.api.problems import Findings


def isvc_document(predictor: str, name: str = "tiny", notes: dict[str, str] | None = None) -> dict[str, Any]:
    """`predictor` is YAML of spec.predictor."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default", "annotations": notes or {}},
        "spec": {"predictor": yaml.safe_load(predictor)},
    }


def read_isvc(document: dict[str, Any]) -> tuple[InferenceService | None, Findings]:
    findings = Findings()
    return inference_service.read(document, findings), findings


def isvc(predictor: str, name: str = "tiny", notes: dict[str, str] | None = None) -> InferenceService:
    service, findings = read_isvc(isvc_document(predictor, name, notes))
    assert service is not None, findings.problems
    return service


def runtime_document(spec: str, name: str = "rt", namespace: str = "", created: str = "") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "creationTimestamp": created}
    if namespace:
        metadata["namespace"] = namespace
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime" if namespace else "ClusterServingRuntime",
        "metadata": metadata,
        "spec": yaml.safe_load(spec),
    }


def runtime(spec: str, name: str = "rt", namespace: str = "", created: str = "") -> ServingRuntime:
    if "containers:" not in spec:
        spec += "\ncontainers: [{name: kserve-container, command: [serve]}]"
    findings = Findings()
    found = serving_runtime.read(runtime_document(spec, name, namespace, created), findings)
    assert found is not None, findings.problems
    return found
