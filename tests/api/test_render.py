"""Composition of a revision: concatenation, merge, placeholders, storage, resources, annotations."""

from __future__ import annotations

import pytest
import yaml

from kserve_ext.api import builtin
from kserve_ext.api.knative.autoscaler_config import EMBEDDED
from kserve_ext.api.kserve import serving_runtime
from kserve_ext.api.kserve.render import render
from kserve_ext.api.kserve.serving_runtime import ServingRuntime
from kserve_ext.api.kserve.storage import Claims, local_path
from kserve_ext.api.problems import Findings
from kserve_ext.core.facts import Resources, Revision
from tests.api.documents import isvc, runtime

CLAIMS = Claims("/data/pvc", {"fast": "/mnt/fast"})
NOTES = "kserve-galaxy.io/"


def ours() -> ServingRuntime:
    found = serving_runtime.read(yaml.safe_load(builtin.texts()[0]), Findings())
    assert found is not None
    return found


def revision(
    predictor: str, rt: ServingRuntime | None = None, notes: dict[str, str] | None = None, generation: int = 3
) -> Revision:
    findings = Findings()
    found = render(isvc(predictor, notes=notes), rt, CLAIMS, EMBEDDED, findings, generation=generation)
    assert found is not None, findings.problems
    return found


def problems(
    predictor: str, rt: ServingRuntime | None = None, notes: dict[str, str] | None = None
) -> dict[str, str]:
    findings = Findings()
    assert render(isvc(predictor, notes=notes), rt, CLAIMS, EMBEDDED, findings) is None
    return {p.field: f"{p.what}; {p.remedy}" for p in findings.problems}


MODEL = "model: {modelFormat: {name: vLLM}, storageUri: 'pvc://models/tiny', args: [--max-model-len=64]}"


def test_the_built_in_runtime() -> None:
    made = revision(MODEL, ours())
    assert made.key == "default/tiny-predictor-00003"
    assert made.service == "default/tiny"
    assert made.command.argv == (
        *("python", "-m", "runtimes.vllm_pd"),
        *("--port=8080", "--model=/mnt/models", "--served-model-name=tiny"),
        "--max-model-len=64",
    )
    assert made.command.zygote == "runtimes.vllm_pd"
    assert made.command.runtime == "galaxy-vllm"
    assert made.needs == Resources(1000, 2048)
    assert made.model.uri == "pvc://models/tiny"
    assert made.model.path == "/data/pvc/models/tiny"
    assert made.timeout_s == made.hold.seconds == made.command.drain_s == 300.0
    assert dict(made.command.env)["INFERENCE_SERVICE_NAME"] == "tiny"
    assert (made.scale.min, made.scale.initial) == (1, 1)


def test_runtime_then_service() -> None:
    base = runtime(
        "annotations: {kserve-galaxy.io/affinity: prefix, kserve-galaxy.io/preload: node}\n"
        "containers: [{name: kserve-container, command: [serve, '{{.Name}}'], args: [--a, '$(B)-{{.Namespace}}'],"
        " env: [{name: A, value: '1'}, {name: B, value: '2'}],"
        " resources: {limits: {cpu: 2, memory: 1Gi, nvidia.com/gpu: 1}}}]"
    )
    made = revision(
        "model: {modelFormat: {name: x}, storageUri: 'file:///m', args: [--b], env: [{name: B, value: '3'}],"
        " resources: {requests: {cpu: 500m}, limits: {rdma/hca: 2}}}\n"
        "annotations: {kserve-galaxy.io/preload: none}",
        base,
        {NOTES + "preload": "fluid", NOTES + "hold-seconds": "5"},
    )
    assert made.command.argv == ("serve", "tiny", "--a", "3-default", "--b")
    env = dict(made.command.env)
    assert (env["A"], env["B"], env["GALAXY_AFFINITY"]) == ("1", "3", "prefix")
    assert made.needs == Resources(500, 1024, 1, 0, 2)
    assert made.model.preload == "none"
    assert made.hold.seconds == 5.0
    assert made.command.zygote == ""


def test_a_command_of_the_service_replaces() -> None:
    base = runtime("containers: [{name: kserve-container, command: [a, b], args: [c]}]")
    made = revision("model: {modelFormat: {name: x}, storageUri: 'file:///m', command: [z]}", base)
    assert made.command.argv == ("z", "c")


def test_variables() -> None:
    made = revision(
        "containers: [{name: c, command: [s, '$(A)', '$$(A)', '$(PORT)'], env: [{name: A, value: v}]}]"
    )
    assert made.command.argv == ("s", "v", "$(A)", "$(PORT)")


def test_a_probe_of_a_plain_server() -> None:
    made = revision(
        "containers: [{name: c, command: [s], readinessProbe: {httpGet: {path: /up}},"
        " startupProbe: {failureThreshold: 6, periodSeconds: 5}}]"
    )
    assert made.command.ready_path == "/up"
    assert made.command.start_timeout_s == 30.0


def test_roles_and_groups() -> None:
    notes = {NOTES + "role": "decode", NOTES + "pd-group": "chat", NOTES + "pd-ratio": "1:2..2:1"}
    made = revision(MODEL, ours(), notes | {NOTES + "pd-threshold-tokens": "64"})
    assert (made.role, made.group, made.pd_ratio, made.home_key) == (
        "decode",
        "default/chat",
        (1, 2, 2, 1),
        "default/chat",
    )
    assert dict(made.command.env)["GALAXY_PD_THRESHOLD_TOKENS"] == "64"


def test_knatives_annotations_and_kserves_bounds() -> None:
    made = revision(
        MODEL + "\nminReplicas: 0\nmaxReplicas: 4\ncontainerConcurrency: 8\ntimeout: 60",
        ours(),
        {"autoscaling.knative.dev/initial-scale": "0", "autoscaling.knative.dev/min-scale": "7"},
    )
    assert (made.scale.min, made.scale.max, made.scale.initial) == (0, 4, 0)
    assert (made.concurrency, made.timeout_s, made.command.drain_s) == (8, 60.0, 60.0)


def test_bounds_that_kserve_ignores_are_said() -> None:
    findings = Findings()
    notes = {"autoscaling.knative.dev/min-scale": "5", "autoscaling.knative.dev/max-scale": "2"}
    assert (
        render(isvc(MODEL + "\nminReplicas: 0", notes=notes), ours(), CLAIMS, EMBEDDED, findings) is not None
    )
    low, high = findings.warnings
    assert "min-scale]: ignored, as in KServe; use spec.predictor.minReplicas" in low
    assert "max-scale]: ignored, as in KServe; use spec.predictor.maxReplicas" in high


BAD = [
    (
        "containers: [{name: c, image: busybox}]",
        None,
        "spec.predictor.containers[0].command",
        "no container engine",
    ),
    ("model: {modelFormat: {name: vLLM}}", ours(), "spec.predictor.model.storageUri", "is missing"),
    (
        "model: {modelFormat: {name: x}, storageUri: 's3://b/m'}",
        ours(),
        "spec.predictor.model.storageUri",
        "downloader",
    ),
    (
        "model: {modelFormat: {name: x}, storageUri: 'pv://b/m'}",
        ours(),
        "spec.predictor.model.storageUri",
        "mean pvc?",
    ),
    (
        "model: {modelFormat: {name: x}, storageUri: /m}",
        ours(),
        "spec.predictor.model.storageUri",
        "has no scheme",
    ),
    (
        MODEL.replace("--max-model-len=64", "'{{.Nmae}}'"),
        ours(),
        "spec.predictor.model.args",
        "{{.Nmae}} is not known",
    ),
    (
        "containers: [{name: c, command: [s], resources: {limits: {amd.com/gpu: 1}}}]",
        None,
        "spec.predictor.containers[0].resources.requests[amd.com/gpu]",
        "no node",
    ),
    (
        "containers: [{name: c, command: [s], resources: {limits: {cpu: 1}, requests: {cpu: 2}}}]",
        None,
        "spec.predictor.containers[0].resources.requests[cpu]",
        "above the limit",
    ),
]


@pytest.mark.parametrize(("predictor", "rt", "field", "what"), BAD)
def test_what_cannot_run_is_said(predictor: str, rt: ServingRuntime | None, field: str, what: str) -> None:
    assert what in problems(predictor, rt).get(field, ""), problems(predictor, rt)


PATHS = [
    ("pvc://models", "/data/pvc/models"),
    ("pvc://models/a/b/", "/data/pvc/models/a/b"),
    ("pvc://fast/a", "/mnt/fast/a"),
    ("pvc://models/a/../b", "/data/pvc/models/b"),
    ("pvc://models/../x", ""),
    ("pvc:///x", ""),
    ("file:///a%20b", "/a b"),
    ("file://host/a", ""),
]


@pytest.mark.parametrize(("uri", "path"), PATHS)
def test_storage(uri: str, path: str) -> None:
    findings = Findings()
    assert local_path(uri, CLAIMS, "f", findings) == path
    assert bool(findings) == bool(path)
