"""An InferenceService on a stack with KServe in it: made for one test, asked in its protocols, deleted.

Its model is the tiny one of set-up, on a volume claim; it is loaded and served by the real engine.
"""

from __future__ import annotations

import copy
import http.client
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from e2e.behaviours.client import Answer, Client
from e2e.behaviours.services import NAMESPACE, SERVING, Service
from e2e.stack.api import Api, ApiError, Object, condition, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.place import CLONE
from tools.setup.layout import Layout

EXAMPLES = CLONE / "examples" / "kserve"
ISVC = "serving.kserve.io/v1beta1"
CLAIM, MODEL = "models", "tiny-llama"
#: An engine needs 10 s of a core of its own to start; several start at once here.
READY_S = 240


class Inference(Service):
    """Its Knative Service, and the InferenceService above it."""

    def __init__(self, api: Api, name: str) -> None:
        super().__init__(api, f"{name}-predictor")
        self.model = name

    @property
    def object(self) -> Object:
        return self.api.get(ISVC, "InferenceService", NAMESPACE, self.model)

    @property
    def revision_object(self) -> Object:
        return self.api.get(SERVING, "Revision", NAMESPACE, self.revision)

    def wait_ready(self) -> None:
        wait_until(
            f"InferenceService {self.model} ready",
            lambda: condition(self.object, "Ready") == "True",
            READY_S,
            detail=lambda: json.dumps(self.object.get("status", {})),
        )

    def post(self, client: Client, path: str, body: Object, **headers: str) -> Answer:
        marks = {"Content-Type": "application/json", **headers}
        return client.send(self, path, "POST", json.dumps(body).encode(), marks)

    def complete(self, client: Client, prompt: str, tokens: int = 4, **headers: str) -> Answer:
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        return self.post(client, "/openai/v1/completions", body, **headers)

    def stream(self, client: Client, prompt: str, tokens: int) -> Iterator[bytes]:
        """The lines of one answer, as they come."""
        backend = client.backend(self)
        connection = http.client.HTTPConnection(backend.address, timeout=60)
        try:
            body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "stream": True}
            text = json.dumps({**body, "ignore_eos": True})
            headers = {**backend.headers, "Content-Type": "application/json"}
            connection.request("POST", "/openai/v1/completions", text, headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield from iter(response.readline, b"")
        finally:
            connection.close()


def text_of(answer: Answer) -> str:
    assert answer.status == 200, (answer.status, answer.body)
    return str(json.loads(answer.body)["choices"][0]["text"])


def example(name: str) -> list[Object]:
    """The objects of a file of examples/kserve, for a machine without GPUs and with little time."""
    objects = list(yaml.safe_load_all((EXAMPLES / name).read_text()))
    for obj in objects:
        if obj["kind"] == "InferenceService":
            _shorten(obj)
        else:  # its author is to put a registry in
            (container,) = obj["spec"]["containers"]
            container["image"] = container["image"].replace("registry.example", "galaxy.local")
    return objects


def _shorten(obj: Object) -> None:
    notes: dict[str, str] = obj["metadata"].setdefault("annotations", {})
    notes["autoscaling.knative.dev/window"] = "6s"
    notes["autoscaling.knative.dev/scale-to-zero-pod-retention-period"] = "0s"
    model = obj["spec"]["predictor"]["model"]
    model.pop("resources", None)
    model.setdefault("args", []).append("--dtype=float32")


def have_models(stack: Cluster) -> None:
    """The claim, bound to a folder of the stack's node that has the model in it."""
    api, target = stack.api, stack.place.host / CLAIM / MODEL
    shutil.copytree(Layout.of_user().tiny_model, target, dirs_exist_ok=True)
    spec: dict[str, Any] = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "volumeName": CLAIM,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    volume = {
        "accessModes": ["ReadOnlyMany"],
        "capacity": {"storage": "1Gi"},
        "hostPath": {"path": f"/{CLAIM}"},
        "claimRef": {"namespace": NAMESPACE, "name": CLAIM},
        "persistentVolumeReclaimPolicy": "Retain",
    }
    api.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM}, "spec": volume})
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": NAMESPACE},
            "spec": spec,
        }
    )

    def bound() -> bool:
        claim = api.get("v1", "PersistentVolumeClaim", NAMESPACE, CLAIM)
        return bool(claim.get("status", {}).get("phase") == "Bound")

    wait_until("the claim of models to be bound", bound, 30)


@contextmanager
def served(api: Api, *objects: Object) -> Iterator[list[Inference]]:
    """All InferenceServices among them ready on entry; everything gone on exit, pods not waited for."""
    made: list[Object] = []
    found: list[Inference] = []
    try:
        for obj in copy.deepcopy(objects):
            obj["metadata"].setdefault("namespace", NAMESPACE)
            api.create(obj)
            made.append(obj)
            if obj["kind"] == "InferenceService":
                found.append(Inference(api, obj["metadata"]["name"]))
        for service in found:
            service.wait_ready()
        yield found
    finally:
        for obj in reversed(made):
            withdraw(api, obj)
        for service in found:
            for pod in api.list("v1", "Pod", NAMESPACE, f"serving.knative.dev/service={service.name}"):
                api.delete("v1", "Pod", NAMESPACE, pod["metadata"]["name"], grace_s=1)


def withdraw(api: Api, obj: Object) -> None:
    """Returns when it is gone. KServe's manager takes its finalizer out: nothing may be left when it goes."""
    where = obj["apiVersion"], obj["kind"], NAMESPACE, obj["metadata"]["name"]
    api.delete(*where)

    def gone() -> bool:
        try:
            api.get(*where)
        except ApiError as error:
            return error.status == 404
        return False

    wait_until(f"{obj['kind']} {obj['metadata']['name']} to be gone", gone, 60)
