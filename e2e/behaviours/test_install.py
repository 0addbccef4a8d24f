"""galaxy install and uninstall in a real control plane, while requests come in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from e2e import build
from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.services import deployed, template
from e2e.stack import knative
from e2e.stack.api import Api, Object
from e2e.stack.cluster import Cluster
from e2e.stack.kubelet import programs
from e2e.stack.place import CLONE, SYSTEM_NAMESPACE

NAMES = ("activator", "autoscaler")
MANIFESTS = CLONE / "manifests"
#: Knative comes from its source here, whose label is "devel"; images of ours are where the kubelet stand-in looks.
OPTIONS = ("--any-version", "--image-registry", "galaxy.local", "--image-tag", "1", "--wait", "120")


def galaxy(*args: str, kubeconfig: str = os.devnull) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "kserve_ext.cli", *args]
    environment = {**os.environ, "PYTHONPATH": str(CLONE), "KUBECONFIG": kubeconfig}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def stock(stack: Cluster, stock: Api) -> Iterator[Api]:
    """What a failed test has left is uninstalled."""
    yield stock
    run(stack, "uninstall")


def deployment(api: Api, name: str) -> Object:
    return api.get("apps/v1", "Deployment", SYSTEM_NAMESPACE, name)


def image(api: Api, name: str) -> str:
    return str(deployment(api, name)["spec"]["template"]["spec"]["containers"][0]["image"])


def run(stack: Cluster, *args: str) -> str:
    done = galaxy(*args, kubeconfig=str(stack.place.kubeconfig))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_install_and_uninstall_under_load_fail_no_request(
    stack: Cluster, stock: Api, ingress: Ingress
) -> None:
    former = {name: deployment(stock, name)["spec"] for name in NAMES}
    annotations = {"target-burst-capacity": "-1", "min-scale": "1"}
    with deployed(stock, "install", template(annotations)) as service:
        with Client(ingress).load(service, 8, "/?sleep=50") as load:
            load.wait_good(50)
            run(stack, "install", *OPTIONS)
            assert [image(stock, name) for name in NAMES] == [
                programs.our_image(f"galaxy-{name}") for name in NAMES
            ]
            load.wait_good(100)
            said = run(stack, "install", *OPTIONS)
            assert said.count("unchanged") == len(NAMES)
            run(stack, "uninstall")
            load.wait_good(100)
        assert not load.failures
    assert {name: deployment(stock, name)["spec"] for name in NAMES} == former
    roles = stock.list(
        "rbac.authorization.k8s.io/v1", "ClusterRole", "", "app.kubernetes.io/part-of=kserve-galaxy"
    )
    assert roles == []


@pytest.mark.parametrize("name", NAMES)
def test_one_part_of_ours_beside_the_other_of_knatives(
    stack: Cluster, stock: Api, ingress: Ingress, name: str
) -> None:
    """From zero and back, twice, in the state in which an installation stands between its two steps."""
    run(stack, "install", *OPTIONS, "--only", name)
    try:
        with deployed(stock, "mixed", template()) as service:
            for _ in range(2):
                service.wait_zero()
                assert Client(ingress).send(service).status == 200
    finally:
        run(stack, "uninstall")


def test_components_come_and_go(stack: Cluster, stock: Api) -> None:
    former = {name: deployment(stock, name)["spec"] for name in NAMES}
    names = ("high-availability", "network-policy", "webhook")
    components = [word for name in names for word in ("--component", name)]
    run(stack, "install", *OPTIONS, *components)
    assert deployment(stock, "autoscaler")["spec"]["replicas"] == 2
    assert deployment(stock, "galaxy-webhook")["status"]["readyReplicas"] == 2
    for name in NAMES:
        assert "topologySpreadConstraints" in deployment(stock, name)["spec"]["template"]["spec"]
    run(stack, "install", *OPTIONS, "--component", "network-policy")
    assert deployment(stock, "autoscaler")["spec"]["replicas"] == 1
    run(stack, "uninstall")
    assert {name: deployment(stock, name)["spec"] for name in NAMES} == former
    label = "app.kubernetes.io/part-of=kserve-galaxy"
    kinds = ("NetworkPolicy", "PodDisruptionBudget", "Deployment")
    for version, kind in zip(("networking.k8s.io/v1", "policy/v1", "apps/v1"), kinds, strict=True):
        assert stock.list(version, kind, SYSTEM_NAMESPACE, label) == []


def test_a_roll_out_that_cannot_work_leaves_knatives_serving(
    stack: Cluster, stock: Api, ingress: Ingress
) -> None:
    with environment(stock, "activator", "GALAXY_ENDPOINTS", "neither") as former:
        with deployed(stock, "broken", template({"target-burst-capacity": "-1"})) as service:
            options = ("--any-version", "--only", "activator", *OPTIONS[1:5], "--wait", "10")
            try:
                done = galaxy("install", *options, kubeconfig=str(stack.place.kubeconfig))
                assert done.returncode == 1
                assert "error: the roll-out of deployment/activator" in done.stderr
                assert "do: the former pods serve; galaxy uninstall puts it back" in done.stderr
                assert Client(ingress).send(service).status == 200
            finally:
                run(stack, "uninstall")
        assert deployment(stock, "activator")["spec"] == former


@contextmanager
def environment(api: Api, name: str, variable: str, value: str) -> Iterator[Object]:
    """The Deployment with a variable that Knative's doesn't look at, rolled out; its spec. Gone in the end."""

    def set_to(entry: Object) -> Object:
        change = {"name": name, "env": [{"name": variable, **entry}]}
        patch = {"spec": {"template": {"spec": {"containers": [change]}}}}
        api.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, name, patch, strategic=True)
        knative.wait_rolled_out(api, name)
        return deployment(api, name)

    spec: Object = set_to({"value": value})["spec"]
    try:
        yield spec
    finally:
        set_to({"$patch": "delete"})


def test_kubectl_puts_back_what_kubectl_has_applied(stack: Cluster, stock: Api, tmp_path: Path) -> None:
    """By the rules of kubectl's three-way merge, which know what it applied last; neither is waited for."""
    former = {name: deployment(stock, name)["spec"] for name in NAMES}
    release = tmp_path / "release.yaml"
    deployments = [obj for obj in knative.objects() if obj["kind"] == "Deployment"]
    release.write_text(yaml.safe_dump_all([obj for obj in deployments if obj["metadata"]["name"] in NAMES]))
    kubectl = (build.program("kubectl"), "--kubeconfig", stack.place.kubeconfig)
    rbac = MANIFESTS / "base" / "rbac.yaml"
    try:
        subprocess.run([*kubectl, "apply", "-f", release], check=True, capture_output=True)
        subprocess.run([*kubectl, "apply", "-k", MANIFESTS / "overlays" / "knative"], check=True)
        assert "galaxy-activator" in image(stock, "activator")
    finally:
        subprocess.run([*kubectl, "apply", "-f", release], check=True, capture_output=True)
        subprocess.run([*kubectl, "delete", "-f", rbac], check=True, capture_output=True)
    assert {name: deployment(stock, name)["spec"] for name in NAMES} == former


def test_an_account_without_permissions_is_told_all_that_it_lacks(
    stack: Cluster, stock: Api, tmp_path: Path
) -> None:
    """`default` of knative-serving may do nothing; no object changes."""
    before = {name: deployment(stock, name)["metadata"]["generation"] for name in NAMES}
    kubectl = (build.program("kubectl"), "--kubeconfig", stack.place.kubeconfig, "-n", SYSTEM_NAMESPACE)
    names = ("deployments", "configmaps")
    reader = ["create", "role", "reader", "--verb=get,list", f"--resource={','.join(names)}"]
    binding = [
        "create",
        "rolebinding",
        "reader",
        "--role=reader",
        f"--serviceaccount={SYSTEM_NAMESPACE}:default",
    ]
    try:
        for command in (reader, binding):
            subprocess.run([*kubectl, *command], check=True, capture_output=True)
        token = subprocess.run(
            [*kubectl, "create", "token", "default"], check=True, capture_output=True, text=True
        )
        config = yaml.safe_load(stack.place.kubeconfig.read_text())
        config["users"] = [
            {"name": user["name"], "user": {"token": token.stdout.strip()}} for user in config["users"]
        ]
        limited = tmp_path / "kubeconfig"
        limited.write_text(yaml.safe_dump(config))
        done = galaxy("install", *OPTIONS, kubeconfig=str(limited))
    finally:
        for kind in ("rolebinding", "role"):
            subprocess.run([*kubectl, "delete", kind, "reader"], check=True, capture_output=True)
    assert done.returncode == 1
    for line in (
        "patch deployments.apps",
        "create configmaps",
        "create clusterroles.rbac.authorization.k8s.io",
    ):
        assert f"why: {line}" in done.stderr
    assert {name: deployment(stock, name)["metadata"]["generation"] for name in NAMES} == before
