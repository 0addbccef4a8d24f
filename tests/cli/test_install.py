"""galaxy install, uninstall and status against an API server with a stock Knative, as a person runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.knative.kinds import KNATIVE_SERVINGS
from kserve_ext.kube.kinds import (
    ADMISSION_POLICIES,
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    PODS,
    SECRETS,
    VALIDATING_WEBHOOKS,
)
from tests.support.certificates import Authority
from tests.support.knative_cluster import PLACE, KnativeCluster, stock

ACTIVATOR = "galaxy-activator:0.1.0"
AUTOSCALER = "galaxy-autoscaler:0.1.0"
STOCK = {name: stock(name)["spec"] for name in ("activator", "autoscaler")}


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[KnativeCluster]:
    cluster = KnativeCluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(empty: KnativeCluster) -> KnativeCluster:
    empty.install_knative()
    return empty


def spec_of(cluster: KnativeCluster, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = cluster.deployment(name)["spec"]
    return spec


def test_there_and_back_leaves_nothing_behind(cluster: KnativeCluster) -> None:
    former = {name: spec_of(cluster, name) for name in ("activator", "autoscaler")}
    installed = cluster("install")
    assert installed.exit_code == 0, installed.output
    assert (cluster.image("activator"), cluster.image("autoscaler")) == (ACTIVATOR, AUTOSCALER)
    assert cluster.get(CLUSTER_ROLES, "", "galaxy-activator") is not None
    removed = cluster("uninstall")
    assert removed.exit_code == 0, removed.output
    assert {name: spec_of(cluster, name) for name in former} == former
    assert cluster.get(CLUSTER_ROLES, "", "galaxy-activator") is None
    assert cluster.get(CLUSTER_ROLE_BINDINGS, "", "galaxy-activator") is None
    assert cluster.get(CONFIG_MAPS, PLACE, "galaxy-install") is None


def test_the_autoscaler_comes_first_and_goes_last(cluster: KnativeCluster) -> None:
    lines = cluster("install").stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "deployment/autoscaler rolled out",
        "deployment/activator rolled out",
    ]
    lines = [line for line in cluster("uninstall").stdout.splitlines() if "rolled out" in line]
    assert [line.split(",")[0] for line in lines] == [
        "deployment/activator rolled out",
        "deployment/autoscaler rolled out",
    ]


def test_nothing_but_the_image_changes(cluster: KnativeCluster) -> None:
    cluster("install", "--image-registry", "r.example/x/", "--image-tag", "7")
    pod = spec_of(cluster, "activator")["template"]["spec"]
    container = pod["containers"][0]
    assert container.pop("image") == "r.example/x/galaxy-activator:7"
    expected = stock("activator")["spec"]["template"]["spec"]
    expected["containers"][0].pop("image")
    assert pod == expected


def test_again_changes_nothing_and_the_former_state_is_kept(cluster: KnativeCluster) -> None:
    cluster("install")
    generation = cluster.deployment("activator")["metadata"]["generation"]
    again = cluster("install")
    assert (again.exit_code, again.stdout.count("unchanged")) == (0, 2)
    assert cluster.deployment("activator")["metadata"]["generation"] == generation
    cluster("install", "--image-tag", "2")
    assert cluster.image("activator") == "galaxy-activator:2"
    cluster("uninstall")
    assert spec_of(cluster, "activator") == stock("activator")["spec"]


def test_only_one_part(cluster: KnativeCluster) -> None:
    cluster("install", "--only", "autoscaler")
    assert cluster.image("activator") == "stock.example/activator@sha256:0"
    assert cluster.get(CLUSTER_ROLES, "", "galaxy-activator") is None
    cluster("install", "--only", "activator")
    cluster("uninstall", "--only", "autoscaler")
    assert (cluster.image("autoscaler"), cluster.image("activator")) == (
        "stock.example/autoscaler@sha256:0",
        ACTIVATOR,
    )
    assert cluster.get(CLUSTER_ROLES, "", "galaxy-activator") is not None
    assert cluster("uninstall").exit_code == 0
    assert cluster.image("activator") == "stock.example/activator@sha256:0"


def test_components_come_and_go(cluster: KnativeCluster) -> None:
    policies = "/apis/networking.k8s.io/v1/namespaces/knative-serving/networkpolicies/"
    cluster("install", "--component", "network-policy", "--component", "high-availability")
    assert spec_of(cluster, "autoscaler")["replicas"] == 2
    assert "topologySpreadConstraints" in spec_of(cluster, "activator")["template"]["spec"]
    without = cluster("install", "--component", "high-availability")
    assert "networkpolicy/galaxy-activator deleted" in without.stdout
    cluster("uninstall")
    assert spec_of(cluster, "autoscaler") == stock("autoscaler")["spec"]
    assert spec_of(cluster, "activator") == stock("activator")["spec"]
    assert f"DELETE {policies}galaxy-autoscaler" in cluster.server.requests


def test_a_kind_that_the_cluster_does_not_know_is_named(cluster: KnativeCluster) -> None:
    cluster.server.fail(404, reason="NotFound", path="podmonitors")
    result = cluster("install", "--component", "monitoring")
    assert "error: this cluster knows no PodMonitor of monitoring.coreos.com/v1" in result.output
    assert cluster("install").exit_code == 0


def mode(cluster: KnativeCluster, name: str) -> str | None:
    env = spec_of(cluster, name)["template"]["spec"]["containers"][0].get("env") or []
    return next((each["value"] for each in env if each["name"] == "GALAXY_MUTUAL_TLS"), None)


def test_the_webhook_comes_with_the_autoscaler_and_goes_with_it(cluster: KnativeCluster) -> None:
    installed = cluster("install", "--component", "webhook")
    assert installed.exit_code == 0, installed.output
    assert "deployment/galaxy-webhook rolled out, 2 of 2" in installed.stdout
    assert cluster.get(VALIDATING_WEBHOOKS, "", "galaxy-webhook") is not None
    assert cluster("install").exit_code == 0
    assert cluster.get(VALIDATING_WEBHOOKS, "", "galaxy-webhook") is None
    assert cluster.get(DEPLOYMENTS, PLACE, "galaxy-webhook") is None


@pytest.mark.parametrize("back", [("uninstall",), ("install",), ("uninstall", "--only", "autoscaler")])
def test_standby_pods_go_with_the_component_and_those_that_serve_stay(
    cluster: KnativeCluster, back: tuple[str, ...]
) -> None:
    installed = cluster("install", "--component", "standby")
    assert installed.exit_code == 0, installed.output
    assert "daemonset/galaxy-node-agent rolled out, 3 of 3" in installed.stdout
    pool = {"kserve-galaxy.io/standby-pool": "x"}
    adopted = {**pool, "serving.knative.dev/revision": "r"}
    for name, labels in (("standby-a", pool), ("standby-b", adopted)):
        cluster.server.put(PODS, {"metadata": {"namespace": "users", "name": name, "labels": labels}})
    removed = cluster(*back)
    assert removed.exit_code == 0, removed.output
    assert "standby pod users/standby-a deleted" in removed.stdout
    assert cluster.get(PODS, "users", "standby-a") is None
    assert cluster.get(PODS, "users", "standby-b") is not None
    assert cluster.get(DAEMON_SETS, PLACE, "galaxy-node-agent") is None


def test_what_the_former_pods_work_by_goes_after_them(cluster: KnativeCluster) -> None:
    """Without the policy's refusals the autoscaler's pods in flight would be deleted by their ReplicaSets."""
    assert cluster("install", "--component", "standby").exit_code == 0
    cluster.server.stuck.add("autoscaler")
    assert cluster("install", "--wait", "0", "--image-tag", "next").exit_code == 1
    for kind in (ADMISSION_POLICIES, CLUSTER_ROLES, DAEMON_SETS):
        name = "galaxy-autoscaler-standby" if kind is CLUSTER_ROLES else None
        found = cluster.server.objects.of(kind)
        assert [key for key in found if name in (None, key[1])], kind
    cluster.server.stuck.clear()
    again = cluster("install")
    assert again.exit_code == 0, again.output
    assert not cluster.server.objects.of(ADMISSION_POLICIES)
    assert not cluster.server.objects.of(DAEMON_SETS)
    record = cluster.get(CONFIG_MAPS, PLACE, "galaxy-install")
    assert record is not None
    assert "standby" not in record["data"]["record.json"]


def test_who_may_not_create_deployments_is_told_so_where_one_is_added(cluster: KnativeCluster) -> None:
    cluster.server.denied = {("create", "deployments")}
    assert "create deployments.apps" in cluster("install", "--component", "webhook").stderr
    assert cluster("install").exit_code == 0


def test_mutual_tls_comes_with_a_certificate_and_goes_with_it(cluster: KnativeCluster) -> None:
    installed = cluster("install", "--mutual-tls", "permissive")
    assert installed.exit_code == 0, installed.output
    assert "secret/galaxy-mutual-tls made" in installed.stdout
    assert (mode(cluster, "activator"), mode(cluster, "autoscaler")) == ("permissive", "permissive")
    made = cluster.get(SECRETS, PLACE, "galaxy-mutual-tls")
    assert made is not None
    assert "BEGIN" not in cluster("install", "--mutual-tls", "strict", "--dry-run").stdout
    again = cluster("install", "--mutual-tls", "strict")
    assert "secret/galaxy-mutual-tls unchanged" in again.stdout
    assert mode(cluster, "activator") == "strict"
    assert cluster.get(SECRETS, PLACE, "galaxy-mutual-tls") == made
    assert cluster("uninstall").exit_code == 0
    assert cluster.get(SECRETS, PLACE, "galaxy-mutual-tls") is None
    assert mode(cluster, "activator") is None


def test_strict_and_without_tls_never_run_beside_each_other(cluster: KnativeCluster) -> None:
    from_stock = cluster("install", "--mutual-tls", "strict")
    assert from_stock.exit_code == 1
    assert "error: mutual TLS is to be strict, and autoscaler is without it" in from_stock.output
    assert cluster.image("autoscaler") == "stock.example/autoscaler@sha256:0"
    cluster("install", "--mutual-tls", "permissive", "--only", "autoscaler")
    assert "activator is without it" in cluster("install", "--mutual-tls", "strict").output
    cluster("install", "--mutual-tls", "permissive")
    assert cluster("install", "--mutual-tls", "strict").exit_code == 0
    upgrade = cluster("install", "--image-tag", "2")
    assert "--mutual-tls strict to keep it" in upgrade.output
    assert cluster.get(SECRETS, PLACE, "galaxy-mutual-tls") is not None
    assert cluster("install", "--image-tag", "2", "--mutual-tls", "strict").exit_code == 0
    assert "  strict  " in cluster("status").stdout
    assert cluster("install", "--mutual-tls", "permissive").exit_code == 0
    assert cluster("install").exit_code == 0


def test_on_the_way_back_strict_ends_before_knatives_own_come(cluster: KnativeCluster) -> None:
    cluster("install", "--mutual-tls", "permissive")
    cluster("install", "--mutual-tls", "strict")
    removed = cluster("uninstall", "--only", "autoscaler")
    assert removed.exit_code == 0, removed.output
    assert (mode(cluster, "activator"), mode(cluster, "autoscaler")) == ("permissive", None)
    cluster("install", "--mutual-tls", "permissive")
    cluster("install", "--mutual-tls", "strict")
    removed = cluster("uninstall")
    assert [line.partition(",")[0] for line in removed.stdout.splitlines() if "deployment/" in line] == [
        "deployment/autoscaler: mutual TLS becomes permissive",
        "deployment/autoscaler rolled out",
        "deployment/activator: mutual TLS becomes permissive",
        "deployment/activator rolled out",
        "deployment/activator rolled out",
        "deployment/autoscaler rolled out",
    ]
    assert spec_of(cluster, "activator") == stock("activator")["spec"]
    assert spec_of(cluster, "autoscaler") == stock("autoscaler")["spec"]


def test_pods_that_drain_are_heard_to_the_end(cluster: KnativeCluster) -> None:
    def pod(mode: str) -> dict[str, Any]:
        metadata = {"name": f"activator-{mode}", "namespace": PLACE, "labels": {"app": "activator"}}
        variable = {"name": "GALAXY_MUTUAL_TLS", "value": mode}
        container = {"name": "activator", "image": ACTIVATOR, "env": [variable]}
        return {"metadata": metadata, "spec": {"containers": [container]}}

    cluster("install", "--mutual-tls", "permissive")
    cluster.put(PODS, pod("off"))
    strict = cluster("install", "--mutual-tls", "strict", "--wait", "0")
    assert "error: pods with mutual TLS off are still there after 0 s\n  why: activator-off" in strict.output
    assert mode(cluster, "autoscaler") == "permissive"
    cluster.server.fail(403, reason="Forbidden", path="pods")
    assert cluster("install", "--mutual-tls", "strict").exit_code == 0
    cluster.put(PODS, pod("strict"))
    back = cluster("uninstall", "--wait", "3")
    assert "mutual TLS strict are still there" in back.output
    assert (cluster.image("activator"), mode(cluster, "activator")) == (ACTIVATOR, "permissive")


def test_what_is_no_place_and_no_tag_of_images(empty: KnativeCluster) -> None:
    for registry in ("http://r.example", "r.example/Team", "r.example/a b", "r.example//a"):
        assert "is no place of images" in empty("install", "--image-registry", registry, "--dry-run").output
    for registry in ("r.example:5000/a_b/c-d/", "localhost", "R.example"):
        assert empty("install", "--image-registry", registry, "--dry-run").exit_code == 0
    for tag in ("a:b", "a b", "-x", "x" * 129):
        assert "is no tag" in empty("install", f"--image-tag={tag}", "--dry-run").output


def test_a_certificate_of_somebody_else_stays(cluster: KnativeCluster) -> None:
    theirs = {"metadata": {"namespace": PLACE, "name": "galaxy-mutual-tls"}, "data": {"ca.crt": ""}}
    cluster.put(SECRETS, theirs)
    assert "is not of galaxy" in cluster("install", "--mutual-tls", "permissive").stdout
    assert cluster("uninstall").exit_code == 0
    assert cluster.get(SECRETS, PLACE, "galaxy-mutual-tls") is not None


def test_what_others_change_meanwhile_stays(cluster: KnativeCluster) -> None:
    cluster("install")
    changed = cluster.deployment("activator")
    changed["spec"]["template"]["spec"]["nodeSelector"] = {"disk": "fast"}
    cluster.put(DEPLOYMENTS, changed)
    cluster("uninstall")
    expected = stock("activator")["spec"]
    expected["template"]["spec"]["nodeSelector"] = {"disk": "fast"}
    assert spec_of(cluster, "activator") == expected


def test_knative_upgraded_over_ours(cluster: KnativeCluster) -> None:
    """Applying a newer release puts Knative's image back; that is the state to go back to from then on."""
    cluster("install")
    newer = cluster.deployment("activator")
    newer["spec"]["template"]["spec"]["containers"][0]["image"] = "stock.example/newer"
    cluster.put(DEPLOYMENTS, newer)
    kept = cluster("uninstall", "--only", "activator")
    assert "runs stock.example/newer meanwhile, which stays" in kept.stdout
    expected = stock("activator")["spec"]
    expected["template"]["spec"]["containers"][0]["image"] = "stock.example/newer"
    assert spec_of(cluster, "activator") == expected
    cluster("install")
    cluster("uninstall")
    assert spec_of(cluster, "activator") == expected


def test_a_roll_out_that_fails_says_why_and_how_to_go_back(cluster: KnativeCluster) -> None:
    cluster.server.stuck.add("autoscaler")
    cluster.add_failing_pod("autoscaler", "ImagePullBackOff")
    result = cluster("install", "--wait", "0")
    assert result.exit_code == 1
    for part in (
        "error: the roll-out of deployment/autoscaler is not done after 0 s",
        "why: autoscaler-x: ImagePullBackOff no such image",
        "do: the former pods serve; galaxy uninstall puts it back",
    ):
        assert part in result.output
    assert cluster.image("activator") == "stock.example/activator@sha256:0"
    cluster.server.stuck.clear()
    assert cluster("uninstall").exit_code == 0
    assert spec_of(cluster, "autoscaler") == stock("autoscaler")["spec"]


def test_a_roll_out_that_fails_where_pods_cannot_be_seen(cluster: KnativeCluster) -> None:
    cluster.server.stuck.add("autoscaler")
    cluster.server.fail(403, reason="Forbidden", path="/pods")
    result = cluster("install", "--wait", "0")
    assert "error: the roll-out of deployment/autoscaler is not done after 0 s" in result.output
    assert "why: its pods can't be listed: Forbidden" in result.output


WRITES = [
    "configmaps",
    "clusterroles",
    "clusterrolebindings",
    "deployments/autoscaler",
    "deployments/activator",
]


@pytest.mark.parametrize("write", WRITES)
def test_cut_off_at_any_write_it_goes_on_or_back(cluster: KnativeCluster, write: str) -> None:
    cluster.server.fail(503, method="PATCH", path=write)
    cut_off = cluster("install")
    assert "error: the API server does not answer" in cut_off.output
    assert "repeat the command: it goes on" in cut_off.output
    assert cluster("install").exit_code == 0
    assert (cluster.image("activator"), cluster.image("autoscaler")) == (ACTIVATOR, AUTOSCALER)
    cluster.server.fail(503, method="PATCH", path="deployments/autoscaler")
    assert cluster("uninstall").exit_code == 1
    assert cluster("uninstall").exit_code == 0
    assert {name: spec_of(cluster, name) for name in STOCK} == STOCK
    assert cluster.get(CONFIG_MAPS, PLACE, "galaxy-install") is None


@pytest.mark.parametrize("write", WRITES)
def test_cut_off_at_any_write_it_can_be_taken_back_at_once(cluster: KnativeCluster, write: str) -> None:
    cluster.server.fail(503, method="PATCH", path=write)
    cluster("install")
    assert cluster("uninstall").exit_code == 0
    assert {name: spec_of(cluster, name) for name in STOCK} == STOCK
    assert cluster.get(CLUSTER_ROLES, "", "galaxy-activator") is None
    assert cluster.get(CONFIG_MAPS, PLACE, "galaxy-install") is None


def test_no_knative(empty: KnativeCluster) -> None:
    result = empty("install")
    assert result.exit_code == 1
    assert "error: Knative Serving is not in the namespace knative-serving" in result.output
    assert empty("uninstall").stdout == "nothing is installed in knative-serving\n"
    assert "absent" in empty("status").stdout


def test_a_release_that_is_not_tested(cluster: KnativeCluster) -> None:
    old = stock("activator")
    old["metadata"]["labels"]["app.kubernetes.io/version"] = "v1.9.0"
    cluster.put(DEPLOYMENTS, old)
    result = cluster("install")
    assert "error: deployment/activator is of Knative Serving 1.9.0\n  why: tested: 1.21" in result.output
    assert not [request for request in cluster.server.requests if request.startswith("PATCH")]
    assert cluster("install", "--any-version").exit_code == 0


def test_an_operator_gets_what_to_write(cluster: KnativeCluster) -> None:
    metadata = {"name": "knative-serving", "namespace": PLACE}
    cluster.put(KNATIVE_SERVINGS, {"metadata": metadata, "spec": {}})
    result = cluster("install", "--image-registry", "r.example")
    assert result.exit_code == 1
    text = "\n".join(line.removeprefix("  do: ") for line in result.output.splitlines() if "  do: " in line)
    assert yaml.safe_load(text[text.index("spec:") :]) == {
        "spec": {
            "registry": {
                "override": {
                    "autoscaler/autoscaler": f"r.example/{AUTOSCALER}",
                    "activator/activator": f"r.example/{ACTIVATOR}",
                }
            }
        }
    }
    assert "managed by Knative's operator: KnativeServing knative-serving" in cluster("status").stdout


def test_an_operator_is_known_by_the_owner_when_its_objects_cannot_be_read(cluster: KnativeCluster) -> None:
    owned = stock("activator")
    owned["metadata"]["ownerReferences"] = [{"kind": "KnativeServing", "name": "theirs"}]
    cluster.put(DEPLOYMENTS, owned)
    cluster.server.fail(403, reason="Forbidden", path="knativeservings")
    assert "KnativeServing theirs" in cluster("install").output


def test_missing_permissions_are_all_named_before_anything_is_changed(cluster: KnativeCluster) -> None:
    cluster.server.denied |= {("create", "clusterroles"), ("patch", "deployments")}
    result = cluster("install")
    assert result.exit_code == 1
    assert "why: patch deployments.apps" in result.output
    assert "why: create clusterroles.rbac.authorization.k8s.io" in result.output
    assert not [request for request in cluster.server.requests if request.startswith("PATCH")]


def test_ours_without_a_record(cluster: KnativeCluster) -> None:
    applied = stock("activator")
    applied["spec"]["template"]["spec"]["containers"][0]["image"] = f"r.example/{ACTIVATOR}"
    cluster.put(DEPLOYMENTS, applied)
    assert "no record says what it ran before" in cluster("install").output
    assert "activator are ours, but no record" in cluster("uninstall").output


def test_a_record_that_is_none(cluster: KnativeCluster) -> None:
    metadata = {"name": "galaxy-install", "namespace": PLACE}
    cluster.put(CONFIG_MAPS, {"metadata": metadata, "data": {"record.json": "[]"}})
    assert "is not a record of an installation" in cluster("install").output


def test_others_that_apply_the_deployments_are_named(cluster: KnativeCluster) -> None:
    managed = stock("activator")
    managed["metadata"]["managedFields"] = [{"manager": "argocd-controller", "operation": "Apply"}]
    cluster.put(DEPLOYMENTS, managed)
    assert "warning" not in cluster("install", "--only", "autoscaler").stderr
    assert "warning: deployment/activator is applied by argocd-controller" in cluster("install").stderr


def test_an_api_server_that_is_away(cluster: KnativeCluster) -> None:
    cluster.do(cluster.server.down())
    result = cluster("install")
    assert result.exit_code == 1
    assert "error: the API server does not answer" in result.output
    assert cluster("install", "--context", "nowhere").output.startswith(
        "error: there is no way to a Kubernetes"
    )


def test_an_api_server_that_is_another(tmp_path: Path) -> None:
    other = KnativeCluster(tmp_path, Authority().server(tmp_path, "127.0.0.1"))
    result = other("status")
    other.close()
    assert result.output.startswith("error: the API server is not the one of the kubeconfig")


def test_credentials_that_are_not_taken(cluster: KnativeCluster) -> None:
    cluster.server.token = "another"
    assert "do: log in anew" in cluster("status").output


def test_a_kubeconfig_that_is_named_and_not_there_is_what_status_complains_of(empty: KnativeCluster) -> None:
    empty.kubeconfig.unlink()
    assert empty("status").output.startswith("error: there is no way to a Kubernetes cluster")


def test_status(cluster: KnativeCluster) -> None:
    cluster("install", "--only", "activator")
    lines = cluster("status").stdout.splitlines()
    assert lines[0] == "Knative Serving in knative-serving"
    assert lines[2].split()[:4] == ["activator", "ours", "1.21.1", ACTIVATOR]
    assert lines[2].endswith("stock.example/activator@sha256:0")
    assert lines[3].split()[:3] == ["autoscaler", "Knative's", "1.21.1"]
    facts = yaml.safe_load(cluster("status", "--context", "here", "-o", "json").stdout)
    assert [part["whose"] for part in facts["parts"]] == ["ours", "Knative's"]


def test_beside_an_embedded_cluster_that_is_stopped_status_is_about_kubernetes(
    cluster: KnativeCluster, tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "data")
    folder.root.mkdir()
    folder.write_cluster({"supervisor": {"pid": os.getpid(), "started": 1}})
    assert "Knative Serving in knative-serving" in cluster("status", "--data", str(folder.root)).stdout


def test_dry_run_asks_no_cluster(empty: KnativeCluster) -> None:
    result = empty("install", "--dry-run", "-n", "elsewhere", "--only", "activator")
    documents = list(yaml.safe_load_all(result.stdout))
    assert [document["kind"] for document in documents] == [
        "ClusterRole",
        "ClusterRoleBinding",
        "Secret",
        "Role",
        "RoleBinding",
        "Deployment",
    ]
    assert documents[1]["subjects"][0]["namespace"] == documents[2]["metadata"]["namespace"] == "elsewhere"
    assert empty.server.requests == []
