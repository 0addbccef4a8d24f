"""Reading of the three kinds: defaults, strictness with full paths, and every problem at once."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kserve_ext.api import builtin
from kserve_ext.api.kserve import inference_service, serving_runtime
from kserve_ext.api.problems import Findings
from tests.api.documents import isvc, isvc_document, read_isvc, runtime_document

MODEL = "model: {modelFormat: {name: vLLM}, storageUri: 'pvc://models/tiny'}"


def test_defaults_of_kserve() -> None:
    service = isvc(MODEL)
    assert (service.min_replicas, service.max_replicas, service.concurrency) == (1, 0, 0)
    assert service.timeout_s is None
    assert service.model is not None
    assert service.model.protocol == "v2", "the webhook presets v2 for vLLM"
    assert service.storage_uri == "pvc://models/tiny"
    assert service.mount == "/mnt/models"


PROBLEMS = [
    (
        "model: {modelFormat: {name: vLLM}, storageURI: x}",
        "spec.predictor.model.storageURI",
        "did you mean storageUri?",
    ),
    ("modle: {}", "spec.predictor.modle", "did you mean model?"),
    ("model: {storageUri: x}", "spec.predictor.model.modelFormat", "add it"),
    (f"{MODEL}\nminReplicas: two", "spec.predictor.minReplicas", "at least 0"),
    (f"{MODEL}\nminReplicas: -1", "spec.predictor.minReplicas", "at least 0"),
    (f"{MODEL}\nminReplicas: 3\nmaxReplicas: 2", "spec.predictor.maxReplicas", "raise maxReplicas"),
    (f"{MODEL}\nmaxReplicas: 2\nminReplicas: 3", "spec.predictor.maxReplicas", "raise maxReplicas"),
    (f"{MODEL}\nscaleMetric: cpu", "spec.predictor.scaleMetric", "concurrency or rps"),
    (f"{MODEL}\nscaleMetric: latency", "spec.predictor.scaleMetric", "use one of concurrency, rps"),
    (f"{MODEL}\ncanaryTrafficPercent: 10", "spec.predictor.canaryTrafficPercent", "remove it"),
    (f"{MODEL}\nworkerSpec: {{}}", "spec.predictor.workerSpec", "remove it"),
    (f"{MODEL}\nlabels: {{a: 1}}", "spec.predictor.labels[a]", "quotes"),
    ("minReplicas: 1", "spec.predictor", "either model or containers"),
    (f"{MODEL}\ncontainers: [{{name: a}}]", "spec.predictor", "either model or containers"),
    ("containers: [{name: a}, {name: b}]", "spec.predictor.containers", "just the container that serves"),
    ("containers: [{image: a}]", "spec.predictor.containers[0].name", "add it"),
    ("containers: [{name: a, args: [1]}]", "spec.predictor.containers[0].args[0]", "quotes"),
    ("containers: [{name: a, args: x}]", "spec.predictor.containers[0].args", "starts with -"),
    (
        "containers: [{name: a, resources: {requests: {cpu: lots}}}]",
        "spec.predictor.containers[0].resources.requests[cpu]",
        "500m",
    ),
    (
        "containers: [{name: a, env: [{name: PYTHONPATH, value: x}]}]",
        "spec.predictor.containers[0].env",
        "remove it",
    ),
    ("model: {modelFormat: {name: x}, storage: {key: k}}", "spec.predictor.model.storage", "use storageUri"),
    (
        "storageUris: [{uri: 'pvc://a'}, {uri: 'pvc://b'}]\nmodel: {modelFormat: {name: x}}",
        "spec.predictor.storageUris",
        "leave one entry",
    ),
]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("-1", "must be at least 0"),
        ("99999999999", "must be at most 2147483647"),
        ("1.5", "must be an integer"),
        ("'1'", "must be an integer"),
        ("true", "must be an integer"),
    ],
)
def test_a_number_out_of_range_is_told_from_what_is_no_number(value: str, what: str) -> None:
    _, findings = read_isvc(isvc_document(f"{MODEL}\nminReplicas: {value}"))
    assert [p.what for p in findings.problems if p.field == "spec.predictor.minReplicas"] == [what]


@pytest.mark.parametrize(("predictor", "field", "remedy"), PROBLEMS)
def test_a_problem_names_its_field_and_the_remedy(predictor: str, field: str, remedy: str) -> None:
    service, findings = read_isvc(isvc_document(predictor))
    assert service is None
    found = {p.field: p.remedy for p in findings.problems}
    assert remedy in found.get(field, ""), findings.problems


def test_every_problem_at_once() -> None:
    document = isvc_document("model: {modelFormat: {nam: x}, storageURI: x}\nminReplicas: x")
    document["spec"]["predicter"] = {}
    document["metadata"]["name"] = "Tiny"
    document["metadata"]["anotations"] = {}
    _, findings = read_isvc(document)
    assert {p.field for p in findings.problems} == {
        "spec.predicter",
        "spec.predictor.minReplicas",
        "spec.predictor.model.modelFormat.nam",
        "spec.predictor.model.modelFormat.name",
        "spec.predictor.model.storageURI",
        "metadata.name",
        "metadata.anotations",
    }


NOTES = {"kserve-galaxy.io/afinity": "session", "autoscaling.knative.dev/target": "-3"}
WRONG_NOTES = {f"metadata.annotations[{key}]" for key in NOTES}


@pytest.mark.parametrize(
    ("predictor", "fields"),
    [
        (f"{MODEL}\nminReplica: 1", {"spec.predictor.minReplica"}),
        (f"{MODEL}\nminReplicas: 3\nmaxReplicas: 2", {"spec.predictor.maxReplicas"}),
        ("minReplicas: 1", {"spec.predictor"}),
        ("containers: [{name: a, env: [{name: PYTHONPATH}]}]", {"spec.predictor.containers[0].env"}),
        (MODEL, set()),
    ],
)
def test_annotations_are_read_whatever_else_is_wrong(predictor: str, fields: set[str]) -> None:
    service, findings = read_isvc(isvc_document(predictor, notes=NOTES))
    assert service is None
    assert {p.field for p in findings.problems} == fields | WRONG_NOTES


def test_annotations_of_the_predictor_are_read_when_others_are_no_text() -> None:
    document = isvc_document(f"{MODEL}\nminReplica: 1\nannotations: {{a: 1, kserve-galaxy.io/rle: decode}}")
    given: dict[Any, Any] = {"kserve-galaxy.io/affinity": True, 7: "x", **NOTES}
    document["metadata"]["annotations"] = given
    _, findings = read_isvc(document)
    assert sorted(p.field for p in findings.problems) == sorted(
        {
            "spec.predictor.minReplica",
            "spec.predictor.annotations[a]",
            "metadata.annotations[7]",
            "metadata.annotations[kserve-galaxy.io/affinity]",
            "metadata.annotations[kserve-galaxy.io/rle]",
            *WRONG_NOTES,
        }
    )


@pytest.mark.parametrize("containers", ["[{name: other}]", "[{nam: kserve-container}]"])
def test_annotations_of_a_runtime_are_read_whatever_else_is_wrong(containers: str) -> None:
    findings = Findings()
    spec = f"containers: {containers}\nannotations: {{kserve-galaxy.io/afinity: session}}"
    assert serving_runtime.read(runtime_document(spec), findings) is None
    fields = [p.field for p in findings.problems]
    assert "spec.annotations[kserve-galaxy.io/afinity]" in fields
    assert len(fields) > 1


@pytest.mark.parametrize(
    "document", [{}, {"metadata": []}, {"metadata": {"name": 3}, "spec": {"predictor": 1}}]
)
def test_nonsense_is_refused_not_raised(document: dict[str, object]) -> None:
    findings = Findings()
    assert inference_service.read(dict(document), findings) is None
    assert findings.problems
    findings = Findings()
    assert serving_runtime.read(dict(document), findings) is None
    assert findings.problems


def test_known_fields_without_effect_are_warned_of() -> None:
    service, findings = read_isvc(
        isvc_document(f"{MODEL}\ntolerations: [{{key: b}}]\nbatcher: {{maxBatchSize: 3}}")
    )
    assert service is not None
    assert findings.warnings == [
        "spec.predictor.tolerations: has no effect in the embedded cluster",
        "spec.predictor.batcher: has no effect in the embedded cluster",
    ]


def test_a_legacy_framework_field_is_a_model() -> None:
    service = isvc("huggingface: {storageUri: 'pvc://models/tiny', args: [--x]}")
    assert service.model is not None
    assert (service.model.format, service.model.protocol) == ("huggingface", "v2")
    assert service.field == "spec.predictor.huggingface"


def test_a_custom_container_may_name_its_storage_in_env() -> None:
    service = isvc("containers: [{name: mine, command: [a], env: [{name: STORAGE_URI, value: 'pvc://c/m'}]}]")
    assert service.model is None
    assert service.storage_uri == "pvc://c/m"


def test_a_runtime_needs_its_container() -> None:
    findings = Findings()
    assert serving_runtime.read(runtime_document("containers: [{name: main}]"), findings) is None
    assert findings.problems[0].remedy == "name the container that serves kserve-container"


def test_the_built_in_runtimes_are_valid_and_without_warnings() -> None:
    for text in builtin.texts():
        findings = Findings()
        runtime = serving_runtime.read(yaml.safe_load(text), findings)
        assert runtime is not None, findings.problems
        assert findings.warnings == []
        assert runtime.cluster
