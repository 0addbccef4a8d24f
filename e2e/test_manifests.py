"""The manifests against what they are for: kustomize, the API server, pod security, and Knative's own manifests."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e import build
from e2e.behaviours.test_install import galaxy
from e2e.stack.api import Api, documents
from e2e.stack.cluster import Cluster
from e2e.stack.implementations import use
from e2e.stack.place import CLONE, SYSTEM_NAMESPACE

MANIFESTS = CLONE / "manifests"
OVERLAY = MANIFESTS / "overlays" / "knative"
COMPONENTS = sorted(path.name for path in (MANIFESTS / "components").iterdir())
#: Kinds that only the Prometheus operator and KServe define (behaviours/test_kserve.py).
FOREIGN = ("PodMonitor", "PrometheusRule", "ClusterServingRuntime")
Object = dict[str, Any]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An overlay as a user may write it: all components, and images from a registry."""
    folder = tmp_path_factory.mktemp("overlay")
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(OVERLAY, folder.resolve())],
        "components": [
            os.path.relpath(MANIFESTS / "components" / name, folder.resolve()) for name in COMPONENTS
        ],
        "images": [
            {"name": name, "newName": f"registry.example:5000/x/{name}", "newTag": "2"}
            for name in ("galaxy-activator", "galaxy-autoscaler", "galaxy-runtime")
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return folder


def kubectl(*args: str | Path) -> str:
    done = subprocess.run([build.program("kubectl"), *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_name(text: str) -> dict[tuple[str, str], Object]:
    return {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(text)}


def test_knatives_deployments_are_held_as_knative_has_them() -> None:
    released = {
        obj["metadata"]["name"]: obj
        for obj in documents(build.configuration() / "serving" / "config" / "core" / "deployments")
        if obj["kind"] == "Deployment"
    }
    for name in ("activator", "autoscaler"):
        (held,) = documents(MANIFESTS / "base" / "knative" / f"{name}.yaml")
        held = copy.deepcopy(held)
        for metadata in (held["metadata"], held["spec"]["template"]["metadata"]):
            metadata["labels"]["app.kubernetes.io/version"] = "devel"
        held["spec"]["template"]["spec"]["containers"][0]["image"] = f"ko://knative.dev/serving/cmd/{name}"
        assert held == released[name]


def test_the_command_renders_as_kustomize_does(everything: Path) -> None:
    rendered = by_name(kubectl("kustomize", everything))
    options = [word for name in COMPONENTS for word in ("--component", name)]
    images = ("--image-registry", "registry.example:5000/x", "--image-tag", "2")
    ours = by_name(galaxy("install", "--dry-run", *options, *images).stdout)
    assert ours.keys() == rendered.keys()
    for key, obj in ours.items():
        if key[0] == "Deployment":  # only what changes
            assert within(obj, rendered[key])
        else:
            assert obj == rendered[key]


def within(part: Any, whole: Any) -> bool:
    """Whether all that `part` says is said by `whole`, too; elements of lists in any order."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(within(part[k], whole.get(k)) for k in part)
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(within(p, w) for w in whole) for p in part)
    return bool(part == whole)


def test_the_api_server_accepts_every_object(stack: Cluster, everything: Path) -> None:
    for obj in by_name(kubectl("kustomize", everything)).values():
        if obj["kind"] not in FOREIGN:
            dry_run(stack.api, obj)


def dry_run(api: Api, obj: Object) -> None:
    metadata = obj["metadata"]
    path = api.path(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"])
    query = "?fieldManager=test&force=true&dryRun=All&fieldValidation=Strict"
    api.call("PATCH", path + query, obj, "application/apply-patch+yaml")


def test_kubectl_applies_the_overlay_over_a_stock_installation(stack: Cluster) -> None:
    use(stack.api, "stock")
    said = kubectl("--kubeconfig", stack.place.kubeconfig, "apply", "--dry-run=server", "-k", OVERLAY)
    for line in (
        "clusterrole.rbac.authorization.k8s.io/galaxy-activator created (server dry run)",
        "deployment.apps/activator configured (server dry run)",
        "deployment.apps/autoscaler configured (server dry run)",
    ):
        assert line in said


def test_pods_are_admitted_where_the_restricted_standard_is_enforced(stack: Cluster) -> None:
    name = "restricted"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    stack.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        for deployment in by_name(kubectl("kustomize", OVERLAY)).values():
            if deployment["kind"] == "Deployment":
                pod = deployment["spec"]["template"]["spec"]
                pod["serviceAccountName"] = "default"
                dry_run(
                    stack.api,
                    {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "metadata": {"name": deployment["metadata"]["name"], "namespace": name},
                        "spec": pod,
                    },
                )
    finally:
        stack.api.delete("v1", "Namespace", "", name)


def test_no_service_of_knatives_changes(stack: Cluster) -> None:
    rendered = by_name(kubectl("kustomize", OVERLAY))
    assert not [key for key in rendered if key[0] == "Service"]
    for name in ("activator-service", "autoscaler"):
        selector = stack.api.get("v1", "Service", SYSTEM_NAMESPACE, name)["spec"]["selector"]
        deployment = rendered["Deployment", name.removesuffix("-service")]
        assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
