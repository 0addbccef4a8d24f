"""A pair of real engines in an embedded cluster: what is told of their channels, and what a restart does to them."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.embedded import Embedded

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: run `make setup`"
    ),
]

ARGS = "--max-model-len 2048 --dtype float32 --served-model-name tiny"


def service(role: str, group: str, **notes: str) -> str:
    annotations = {
        "kserve-galaxy.io/role": role,
        "kserve-galaxy.io/pd-group": group,
        "kserve-galaxy.io/pd-threshold-tokens": "64",
        "autoscaling.knative.dev/initial-scale": "1",
        **{f"kserve-galaxy.io/{name.replace('_', '-')}": value for name, value in notes.items()},
    }
    return f"""
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: {group}-{role}, namespace: default, annotations: {json.dumps(annotations)}}}
spec:
  predictor:
    minReplicas: 1
    maxReplicas: 1
    model:
      modelFormat: {{name: vLLM}}
      storageUri: pvc://models/tiny
      args: {json.dumps(ARGS.split())}
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


def condition(cluster: Embedded, name: str) -> dict[str, str]:
    conditions = cluster.json("get", "isvc", name)["status"]["conditions"]
    return next(c for c in conditions if c["type"] == "KVTransferReady")


def ask(cluster: Embedded, host: str, seed: int) -> tuple[int, dict[str, str], str]:
    rng = random.Random(seed)
    prompt = [rng.randrange(3, 260) for _ in range(600)]
    body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0}).encode()
    headers = {"Host": f"{host}.default.galaxy.local", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{cluster.port}/v1/completions", body, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, ""
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read().decode()


def instance(cluster: Embedded, service: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = cluster.status()["instances"]
    return next(i for i in found if i["revision"].startswith(f"default/{service}-") and i["state"] == "ready")


def test_a_pair_is_connected_before_the_first_request_and_says_how(cluster: Embedded) -> None:
    cluster.apply(service("prefill", "chat") + "---" + service("decode", "chat"))
    cluster.wait("both have a channel", lambda: condition(cluster, "chat-decode")["status"] == "True")
    prefill, decode = instance(cluster, "chat-prefill"), instance(cluster, "chat-decode")
    for name in ("chat-decode", "chat-prefill"):

        def said_by(name: str = name) -> bool:
            return condition(cluster, name)["reason"] == "Shm"

        cluster.wait("the other service says so, too", said_by)
    said = condition(cluster, "chat-decode")["message"]
    assert said.startswith(f"{decode['id']} – {prefill['id']}: shm")
    assert "rdma: " in said, "why the better method was passed over"
    status, headers, _ = ask(cluster, "chat-decode", 1)
    assert status == 200
    rung, *facts = headers["x-kv-transfer"].split(";")
    assert rung == "shm"
    assert [fact.split("=")[0] for fact in facts] == ["bytes", "tokens", "ms", "overlap"]
    assert 0.0 <= float(facts[-1].split("=")[1]) <= 1.0
    explained = cluster.galaxy("explain", headers["x-request-id"])
    assert f"pair: {decode['id']} – {prefill['id']}, generation " in explained
    assert "not by rdma: " in explained
    assert "overlap" in explained
    assert "Shm" in cluster.galaxy("get", "isvc", "chat-decode", "-o", "wide")
    described = cluster.galaxy("describe", "isvc", "chat-prefill")
    assert decode["id"] in described.partition("KV channels")[2]


def test_a_prefill_that_is_killed_is_replaced_and_connected_anew(cluster: Embedded) -> None:
    before = instance(cluster, "chat-prefill")
    os.kill(before["pid"], signal.SIGKILL)

    def replaced() -> bool:
        said = condition(cluster, "chat-decode")
        return said["status"] == "True" and before["id"] not in said["message"]

    cluster.wait("another prefill instance is connected", replaced)
    status, headers, _ = ask(cluster, "chat-decode", 2)
    assert status == 200
    assert headers["x-kv-transfer"].startswith(("shm;", "none;reason=backing-off"))


def test_a_method_that_is_required_and_can_not_be_had_is_an_error(cluster: Embedded) -> None:
    cluster.galaxy("delete", "isvc", "chat-decode", "chat-prefill")
    strict = {"kv_transfer": "rdma", "kv_transfer_required": "true", "pd": "always"}
    cluster.apply(service("prefill", "strict", **strict) + "---" + service("decode", "strict", **strict))
    cluster.wait("it is said", lambda: condition(cluster, "strict-decode")["reason"] == "RungUnavailable")
    said = condition(cluster, "strict-decode")
    assert said["status"] == "False"
    assert "rdma: " in said["message"]
    status, _, body = ask(cluster, "strict-decode", 3)
    assert status == 503
    assert "rdma: " in body
