"""Our admission webhook, in the way of the real API server, whichever activator and autoscaler run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from e2e.behaviours.services import NAMESPACE, SERVING, deployed, template
from e2e.behaviours.test_install import galaxy
from e2e.stack import knative
from e2e.stack.api import Api, ApiError, Object, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.place import SYSTEM_NAMESPACE

NAME = "galaxy-webhook"
IMAGES = ("--image-registry", "galaxy.local", "--image-tag", "1")
OURS = "kserve-galaxy.io/"
BURST = "autoscaling.knative.dev/target-burst-capacity"
KSERVE = "serving.kserve.io"
#: KServe's own schemas are not what is tried here: these let everything through.
KINDS = (
    ("v1beta1", "InferenceService", "inferenceservices", "Namespaced"),
    ("v1alpha1", "ServingRuntime", "servingruntimes", "Namespaced"),
    ("v1alpha1", "ClusterServingRuntime", "clusterservingruntimes", "Cluster"),
)


@pytest.fixture(scope="module")
def hooked(stack: Cluster) -> Iterator[Api]:
    """Applied, and in force; gone in the end."""
    api = stack.api
    api.apply_all(definition(*kind) for kind in KINDS)
    rendered = galaxy("install", "--dry-run", "--component", "webhook", *IMAGES)
    component = [obj for obj in yaml.safe_load_all(rendered.stdout) if obj["metadata"]["name"] == NAME]
    try:
        api.apply_all(component)
        knative.wait_rolled_out(api, NAME)
        wait_in_force(api)
        yield api
    finally:
        for obj in reversed(component):
            metadata = obj["metadata"]
            api.delete(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"])


def definition(version: str, kind: str, plural: str, scope: str) -> Object:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{KSERVE}"},
        "spec": {
            "group": KSERVE,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "scope": scope,
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }


def wait_in_force(api: Api) -> None:
    """The API server takes a moment to hear of webhooks, endpoints and authorities."""

    def refused() -> bool:
        try:
            dry_run(api, inference_service(rol="x"))
        except ApiError:
            return True
        return False

    wait_until("the webhook to be asked", refused, 60)


def dry_run(api: Api, obj: Object) -> Object:
    namespace = obj["metadata"].get("namespace", "")
    path = api.path(obj["apiVersion"], obj["kind"], namespace)
    answer: Object = api.call("POST", f"{path}?dryRun=All", obj)
    return answer


def inference_service(**notes: str) -> Object:
    marks = {OURS + name.replace("_", "-"): value for name, value in notes.items()}
    return {
        "apiVersion": f"{KSERVE}/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "chat", "namespace": NAMESPACE, "annotations": marks},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "vLLM"}}}},
    }


def service(annotations: dict[str, str]) -> Object:
    marked = template()
    marked["metadata"]["annotations"] = {**(marked["metadata"].get("annotations") or {}), **annotations}
    return {
        "apiVersion": SERVING,
        "kind": "Service",
        "metadata": {"name": "hooked", "namespace": NAMESPACE},
        "spec": {"template": marked},
    }


BAD: list[tuple[Object, str]] = [
    (
        inference_service(hold_second="3"),
        f"metadata.annotations[{OURS}hold-second]: unknown annotation; did you mean {OURS}hold-seconds?",
    ),
    (
        inference_service(kv_transfer="infiniband"),
        "use one of auto, rdma, ipc, tcp, nixl, none",
    ),
    (
        service({OURS + "engine": "galaxy", OURS + "role": "prefill"}),
        f"spec.template.metadata.annotations[{OURS}role]: role prefill serves only in a group",
    ),
    *(
        (
            {
                "apiVersion": f"{KSERVE}/v1alpha1",
                "kind": kind,
                "metadata": {"name": "llm", **({} if kind.startswith("C") else {"namespace": NAMESPACE})},
                "spec": {"annotations": {OURS + "role": "both"}, "containers": []},
            },
            f"spec.annotations[{OURS}role]: not an allowed value (is 'both'); use one of unified, prefill, decode",
        )
        for kind in ("ServingRuntime", "ClusterServingRuntime")
    ),
]


@pytest.mark.parametrize(
    ("obj", "message"), BAD, ids=lambda value: value["kind"] if isinstance(value, dict) else ""
)
def test_the_api_server_hands_on_what_is_wrong(hooked: Api, obj: Object, message: str) -> None:
    with pytest.raises(ApiError) as refusal:
        dry_run(hooked, obj)
    assert refusal.value.status == 422
    assert message in str(refusal.value)


def test_what_is_right_or_none_of_ours_passes(hooked: Api) -> None:
    dry_run(hooked, inference_service(engine="galaxy", hold_seconds="3"))
    dry_run(hooked, inference_service())
    dry_run(hooked, service({}))


def revision(api: Api, name: str) -> Object:
    return api.get(SERVING, "Revision", NAMESPACE, name)


def test_a_revision_that_is_opted_in_keeps_the_activator_in_its_path(hooked: Api) -> None:
    """And its Service, its Configuration and a revision of somebody else stay as they were written."""
    with deployed(hooked, "opted", service({OURS + "engine": "galaxy"})["spec"]["template"]) as opted:
        stored = revision(hooked, opted.revision)["metadata"]["annotations"]
        assert stored[BURST] == "-1"
        assert opted.autoscaler()["metadata"]["annotations"][BURST] == "-1"
        for kind in ("Service", "Configuration"):
            above = hooked.get(SERVING, kind, NAMESPACE, opted.name)
            assert BURST not in above["spec"]["template"]["metadata"]["annotations"]
            assert above["metadata"]["generation"] == 1
        change = {"metadata": {"annotations": {OURS + "role": "unified"}}}
        with pytest.raises(ApiError, match="can't change from not given"):
            hooked.patch(SERVING, "Revision", NAMESPACE, opted.revision, change)
    with deployed(hooked, "plain", template()) as plain:
        assert BURST not in revision(hooked, plain.revision)["metadata"]["annotations"]


def test_where_no_webhook_answers_everything_passes(hooked: Api) -> None:
    """Even what it would refuse: the cluster goes on."""
    with scaled(hooked, 0):
        wait_until("no webhook", lambda: passes(hooked, inference_service(rol="x")), 60)
        with deployed(hooked, "alone", service({OURS + "engine": "galaxy"})["spec"]["template"]) as alone:
            assert BURST not in revision(hooked, alone.revision)["metadata"]["annotations"]
    wait_in_force(hooked)


def passes(api: Api, obj: Object) -> bool:
    try:
        dry_run(api, obj)
    except ApiError:
        return False
    return True


@contextlib.contextmanager
def scaled(api: Api, replicas: int) -> Iterator[None]:
    def to(count: int) -> None:
        api.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, NAME, {"spec": {"replicas": count}})

    to(replicas)
    try:
        yield
    finally:
        to(2)
        knative.wait_rolled_out(api, NAME)


def test_one_pod_after_the_other_may_go_and_nothing_passes_unseen(hooked: Api) -> None:
    """A rolling update: who ends still answers until the API server has heard of it."""
    patch: dict[str, Any] = {"spec": {"template": {"metadata": {"annotations": {"restarted": "yes"}}}}}
    deployment = hooked.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, NAME, patch, strategic=True)
    wanted = deployment["metadata"]["generation"]
    passed = asked = 0

    def rolled_out() -> bool:
        nonlocal passed, asked
        asked += 1
        passed += passes(hooked, inference_service(rol="x"))
        status = hooked.get("apps/v1", "Deployment", SYSTEM_NAMESPACE, NAME)["status"]
        counts = (status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas"))
        return status["observedGeneration"] >= wanted and set(counts) == {2}

    wait_until("both pods to be new", rolled_out, 120)
    assert asked > 10
    assert passed == 0
