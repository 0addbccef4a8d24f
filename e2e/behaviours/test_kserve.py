"""First light on KServe: its real manager and webhooks, our runtimes, our activator and autoscaler.

One stack for all; the runtime is the real one, with vLLM on CPU and a tiny model. Four and a half minutes.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping

import pytest

from e2e import build
from e2e.behaviours.client import Client
from e2e.behaviours.inference import READY_S, example, have_models, served, text_of, withdraw
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.services import NAMESPACE
from e2e.behaviours.standby import UID, wait_agreed
from e2e.behaviours.test_install import OPTIONS, run
from e2e.behaviours.test_webhook import BURST, OURS, dry_run, inference_service, wait_in_force
from e2e.stack import kserve
from e2e.stack.api import Api, ApiError, Object, condition, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.implementations import grant, images, roll_out, use
from e2e.stack.kubelet import programs
from kserve_ext.api.standby import names

LONG = "the quick brown fox jumps over the lazy dog and runs away from all of them " * 4
pytestmark = pytest.mark.timeout(600, method="signal")


@pytest.fixture(scope="module")
def kserved(stack: Cluster) -> Iterator[Api]:
    """KServe, and ours by `galaxy install` with the components that are for it; Knative's own in the end."""
    pytest.importorskip("vllm", reason="the engines' packages are not there: run `make setup`")
    if absent := build.missing(None, "kserve"):
        pytest.fail(f"not built yet: {', '.join(absent)} (python -m e2e.build)")
    api, before = stack.api, images(stack.api)
    programs.give(stack.place, {"galaxy-runtime": [sys.executable, "-m", "runtimes.vllm_pd"]})
    use(api, "stock")
    with contextlib.ExitStack() as undoing:
        undoing.callback(put_back, api, before)
        undoing.callback(kserve.remove, api)
        kserve.install(api)
        have_models(stack)
        undoing.callback(run, stack, "uninstall")
        components = [f"--component={name}" for name in ("webhook", "kserve", "standby")]
        run(stack, "install", *OPTIONS, *components)
        wait_in_force(api)
        yield api


def put_back(api: Api, before: Mapping[str, str]) -> None:
    if before != images(api):
        grant(api)
        roll_out(api, before)


@pytest.fixture
def client(ingress: Ingress) -> Client:
    return Client(ingress)


def test_a_service_of_our_runtime_answers_in_every_protocol_and_wakes_from_zero(
    kserved: Api, client: Client
) -> None:
    (obj,) = example("service.yaml")
    obj["spec"]["predictor"]["annotations"] = {OURS + "affinity": "session"}
    with served(kserved, obj) as (chat,):
        assert chat.object["status"]["clusterServingRuntimeName"] == "galaxy-vllm"
        notes = chat.revision_object["metadata"]["annotations"]
        assert notes[OURS + "engine"] == "galaxy", "of the runtime"
        assert notes[OURS + "affinity"] == "session", "of the predictor"
        assert notes[BURST] == "-1", "by our webhook"
        assert chat.autoscaler()["metadata"]["annotations"][BURST] == "-1"

        prompt = "one two three"
        answer = chat.complete(client, prompt)
        said = text_of(answer)
        assert json.loads(answer.body)["model"] == "chat"
        parameters = {"max_tokens": 4, "temperature": 0}
        v1 = chat.post(client, "/v1/models/chat:predict", {"instances": [prompt], "parameters": parameters})
        assert (v1.status, json.loads(v1.body)) == (200, {"predictions": [said]})
        tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [prompt]}
        v2 = chat.post(client, "/v2/models/chat/infer", {"inputs": [tensor], "parameters": parameters})
        assert v2.status == 200
        assert json.loads(v2.body)["outputs"][0]["data"] == [said]

        chat.wait_zero()
        assert text_of(chat.complete(client, prompt)) == said
        (pod,) = chat.pods()

        stream = chat.stream(client, prompt, 1500)
        lines = [next(stream)]
        kserved.delete("v1", "Pod", NAMESPACE, pod["metadata"]["name"])
        lines += stream
        assert lines[-2:] == [b"data: [DONE]\n", b"\n"], "a pod that goes has ended its answers"


def test_a_service_with_a_shaped_engine_that_stands_by(kserved: Api, client: Client) -> None:
    (obj,) = example("service.yaml")
    obj["spec"]["predictor"]["annotations"] = {OURS + "standby": "1", OURS + "standby-level": "S1"}

    def idle() -> list[Object]:
        pods = kserved.list("v1", "Pod", NAMESPACE, names.POOL_LABEL)
        return [p for p in pods if UID not in p["metadata"]["labels"] and condition(p, "Ready") == "True"]

    with served(kserved, obj) as (chat,):
        prompt = "one two three"
        said = text_of(chat.complete(client, prompt))
        chat.wait_zero()
        wait_until("an engine without weights to stand by", lambda: len(idle()) == 1, READY_S)
        (stands_by,) = idle()
        began = time.monotonic()
        assert text_of(chat.complete(client, prompt)) == said
        print(f"answered after {time.monotonic() - began:.2f} s")
        (pod,) = wait_agreed(chat, 1)
        assert pod["metadata"]["uid"] == stands_by["metadata"]["uid"]
        (used,) = [c for c in chat.autoscaler()["status"]["conditions"] if c["type"] == "StandbyUsed"]
        assert (used["status"], used["reason"]) == ("True", "Taken"), used
        assert "S1" in used["message"]


def test_the_webhook_checks_what_kserve_is_given(kserved: Api) -> None:
    with pytest.raises(ApiError, match=f"did you mean {OURS}hold-seconds"):
        dry_run(kserved, inference_service(hold_second="3"))
    runtime = example("llm.yaml")[0]
    runtime["metadata"]["namespace"] = NAMESPACE
    dry_run(kserved, runtime)
    runtime["spec"]["annotations"][OURS + "role"] = "both"
    with pytest.raises(ApiError, match="use one of unified, prefill, decode"):
        dry_run(kserved, runtime)


def test_a_group_computes_prompts_on_one_side_and_answers_on_the_other(kserved: Api, client: Client) -> None:
    with served(kserved, _key(), *example("group.yaml")) as (prefill, decode):
        for service, role in ((prefill, "prefill"), (decode, "decode")):
            notes = service.revision_object["metadata"]["annotations"]
            assert (notes[OURS + "role"], notes[OURS + "pd-group"]) == (role, "chat")
        answer = decode.complete(client, LONG)
        said = text_of(answer)
        rung, _, rest = answer.headers["x-kv-transfer"].partition(";")
        assert rung in ("shm", "tcp"), rest
        alone = prefill.complete(client, LONG)
        assert text_of(alone) == said, "what one engine says"
        for service in (prefill, decode):
            service.wait_zero()
        assert text_of(decode.complete(client, LONG)) == said
        wait_until("prefill to be woken with decode", prefill.ready_pods, READY_S)

        withdraw(kserved, prefill.object)
        alone = decode.complete(client, f"another {LONG}")
        assert (alone.status, alone.headers["x-kv-transfer"]) == (200, "none;reason=no-prefill")


def _key() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "galaxy-kv", "namespace": NAMESPACE},
        "stringData": {"key": "0123456789abcdef" * 4},
    }


def test_a_runtime_of_ones_own_over_two_ranks(kserved: Api, client: Client) -> None:
    with served(kserved, *example("llm.yaml")) as (llm,):
        (pod,) = llm.ready_pods()
        container = next(c for c in pod["spec"]["containers"] if c["name"] == "kserve-container")
        assert container["args"] == [
            "--port=8080",
            "--model=/mnt/models",
            "--served-model-name=llm",
            "--tensor-parallel-size=2",
            "--max-model-len=2048",
            "--dtype=float32",
        ]
        volume = next(v for v in pod["spec"]["volumes"] if v["name"] == "kserve-pvc-source")
        assert volume["persistentVolumeClaim"]["claimName"] == "models"
        mount = next(m for m in container["volumeMounts"] if m["name"] == "kserve-pvc-source")
        assert (mount["mountPath"], mount["subPath"], mount["readOnly"]) == (
            "/mnt/models",
            "tiny-llama",
            True,
        )
        assert text_of(llm.complete(client, "one two three"))
