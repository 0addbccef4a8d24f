"""A group of plain engines: the runtime's command is our router, which starts one for each instance."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.support.embedded import NAMESPACE, Embedded

pytestmark = pytest.mark.cluster

RUNTIME = f"""
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {{name: plain, namespace: {NAMESPACE}}}
spec:
  supportedModelFormats: [{{name: plain, version: "1", autoSelect: true}}]
  protocolVersions: [v1]
  containers:
  - name: kserve-container
    image: example.com/plain:1
    command: {json.dumps([sys.executable, "-m", "runtimes.two_leg"])}
    args: {json.dumps(["--check-seconds", "1", "--", sys.executable, "-m", "tests.support.plain_engine"])}
    readinessProbe: {{httpGet: {{path: /ready, port: 8080}}}}
    resources: {{requests: {{cpu: 100m, memory: 64Mi}}}}
"""


def service(role: str, model: str) -> str:
    notes = {
        "kserve-galaxy.io/role": role,
        "kserve-galaxy.io/pd-group": "plain",
        "kserve-galaxy.io/pd-threshold-tokens": "64",
        "autoscaling.knative.dev/initial-scale": "0",
    }
    return f"""
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: plain-{role}, namespace: {NAMESPACE}, annotations: {json.dumps(notes)}}}
spec:
  predictor:
    minReplicas: 0
    maxReplicas: 2
    containerConcurrency: 4
    model: {{modelFormat: {{name: plain}}, storageUri: {model}, args: [--name={role}]}}
"""


def ask(cluster: Embedded, prompt: Any) -> tuple[Any, Any]:
    request = urllib.request.Request(
        f"http://{cluster.run_file('dispatch-0')['http']}/v1/completions",
        json.dumps({"model": "m", "prompt": prompt, "max_tokens": 3}).encode(),
        {"host": "plain-decode.default.galaxy.local", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from error


def test_from_zero_over_two_legs(cluster: Embedded, model: str) -> None:
    cluster.apply(RUNTIME + service("prefill", model) + service("decode", model))
    body, headers = ask(cluster, list(range(300)))
    assert body == {"by": "decode", "text": "xxx"}
    assert headers["x-cold-start"] == "true"
    assert headers["x-kv-transfer"].startswith("vllm;tokens=7;")
    body, short = ask(cluster, [1, 2, 3])
    assert (body["by"], short["x-kv-transfer"]) == ("decode", "none;reason=below-threshold")
    told = cluster.galaxy("explain", headers["x-request-id"])
    for step in ("prefill slot leased", "prefill done", "decode engine answers"):
        assert step in told
    for role in ("prefill", "decode"):
        cluster.galaxy("delete", "isvc", f"plain-{role}")
