"""Two prefill engines for one of decode, in an embedded cluster: a prompt goes where its beginning was computed, and
`galaxy explain` says why."""

from __future__ import annotations

import importlib.util
import json
import random
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.embedded import Embedded

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: run `make setup`"
    ),
]

ARGS = ["--max-model-len", "2048", "--dtype", "float32", "--served-model-name", "tiny"]


def service(role: str, count: int, *args: str) -> str:
    notes = {
        "kserve-galaxy.io/role": role,
        "kserve-galaxy.io/pd-group": "pick",
        "kserve-galaxy.io/pd-threshold-tokens": "64",
        "autoscaling.knative.dev/initial-scale": str(count),
    }
    return f"""
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: pick-{role}, namespace: default, annotations: {json.dumps(notes)}}}
spec:
  predictor:
    minReplicas: {count}
    maxReplicas: {count}
    model:
      modelFormat: {{name: vLLM}}
      storageUri: pvc://models/tiny
      args: {json.dumps([*ARGS, *args])}
      resources: {{requests: {{cpu: 500m, memory: 1500Mi}}}}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("galaxy")
    (folder / "claim").mkdir()
    (folder / "claim" / "tiny").symlink_to(tiny_model)
    size = ("--nodes", "1", "--node-cpu", "4", "--node-memory", "8Gi")
    with Embedded(folder / "data", *size, "--pvc", f"models={folder / 'claim'}") as up:
        yield up


def leased(cluster: Embedded, seed: int) -> tuple[str, str]:
    """Which prefill instance computed this prompt, and why that one."""
    rng = random.Random(seed)
    prompt = [rng.randrange(3, 260) for _ in range(700)]
    body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0}).encode()
    headers = {"Host": "pick-decode.default.galaxy.local", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{cluster.port}/v1/completions", body, headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        assert ";tokens=700;" in answer.headers["x-kv-transfer"], answer.headers["x-kv-transfer"]
        explained = cluster.galaxy("explain", answer.headers["x-request-id"])
    line = next(line for line in explained.splitlines() if "prefill slot leased" in line)
    instance, _, why = line.partition("prefill slot leased")[2].strip().partition(" ")
    return instance, why


def test_a_prompt_goes_where_its_beginning_was_computed(cluster: Embedded) -> None:
    cluster.apply(service("prefill", 2) + service("decode", 1, "--no-enable-prefix-caching"))

    def connected() -> bool:
        conditions = cluster.json("get", "isvc", "pick-decode")["status"]["conditions"]
        said = next(c for c in conditions if c["type"] == "KVTransferReady")
        return bool(said["status"] == "True" and said["message"].count("shm") == 2)

    cluster.wait("channels to both", connected)
    first = {seed: leased(cluster, seed) for seed in range(6)}
    again = {seed: leased(cluster, seed) for seed in range(6)}
    assert {seed: name for seed, (name, _) in again.items()} == {
        seed: name for seed, (name, _) in first.items()
    }
    for _, why in again.values():
        assert "0 tokens wait there, holds 640 of 700, channel stands, same host" in why
