"""The component standby: what a node's agent may do and see, and that standby pods, autoscaler and agent meet."""

from __future__ import annotations

from typing import Any

from autoscaler_shim.node_agent import settings
from kserve_ext.api.standby import names
from kserve_ext.cli.knative.kustomize import MANIFESTS, Identity, build
from kserve_ext.kube.identity import SECRET as MUTUAL_TLS
from kserve_ext.kube.peers_key import SECRET as PEERS
from tests.manifests.test_manifests import EVERYTHING, permissions, version

Object = dict[str, Any]
NAME = "galaxy-node-agent"
MINE = {obj["kind"]: obj for key, obj in EVERYTHING.objects.items() if key.name == NAME}
TEMPLATE = MINE["DaemonSet"]["spec"]["template"]
POD = TEMPLATE["spec"]
(CONTAINER,) = POD["containers"]


def test_it_may_ask_whose_a_token_is_and_read_nodes_and_the_secrets_of_ours() -> None:
    assert permissions("ClusterRole", NAME) == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    ]
    secrets = {"apiGroups": [""], "resources": ["secrets"]}
    assert permissions("Role", NAME) == [
        {**secrets, "resourceNames": [PEERS], "verbs": ["get"]},
        {**secrets, "resourceNames": [MUTUAL_TLS], "verbs": ["get", "list", "watch"]},
    ]


def test_it_has_no_privilege_but_one_folder_of_its_node() -> None:
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,  # owns the folder that the kubelet makes, and can do no more than that
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers"} & set(POD)
    (volume,) = POD["volumes"]
    assert volume["hostPath"] == {"path": names.SOCKET_FOLDER, "type": "DirectoryOrCreate"}
    assert CONTAINER["volumeMounts"] == [{"name": volume["name"], "mountPath": names.SOCKET_FOLDER}]
    assert not any("hostPort" in port for port in CONTAINER["ports"])


def test_whoever_looks_for_it_finds_it() -> None:
    labels = TEMPLATE["metadata"]["labels"]
    assert labels[names.COMPONENT_LABEL] == names.AGENT_COMPONENT
    assert labels[names.PART_LABEL] == names.PART
    assert MINE["DaemonSet"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    read = settings.read({"NODE_NAME": "n", "POD_IP": "10.0.0.1"})
    assert str(read.socket) == names.SOCKET
    assert {port["name"]: port["containerPort"] for port in CONTAINER["ports"]} == {
        names.AGENT_PORT_NAME: read.port,
        "metrics": read.metrics_port,
    }
    assert read.port == names.AGENT_PORT
    assert {variable["name"] for variable in CONTAINER["env"]} >= {"NODE_NAME", "POD_IP", "SYSTEM_NAMESPACE"}


def test_it_runs_the_autoscalers_image_where_gpus_are() -> None:
    assert CONTAINER["command"] == ["python", "-m", "autoscaler_shim.node_agent"]
    assert CONTAINER["image"] == f"galaxy-autoscaler:{version()}"
    assert POD["serviceAccountName"] == MINE["ServiceAccount"]["metadata"]["name"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in POD["tolerations"]


def test_policies_let_autoscalers_to_agents_and_agents_to_activators() -> None:
    policy = MINE["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= TEMPLATE["metadata"]["labels"].items()
    (rpc,) = (
        rule for rule in policy["ingress"] if {"port": names.AGENT_PORT, "protocol": "TCP"} in rule["ports"]
    )
    assert rpc["from"] == [{"podSelector": {"matchLabels": {"app": "autoscaler"}}}]
    activators = EVERYTHING.objects[Identity("NetworkPolicy", "knative-serving", "galaxy-activator")]
    (peers,) = (
        rule for rule in activators["spec"]["ingress"] if {"port": 8014, "protocol": "TCP"} in rule["ports"]
    )
    (chosen,) = (each["podSelector"]["matchExpressions"][0] for each in peers["from"])
    assert TEMPLATE["metadata"]["labels"]["app"] in chosen["values"]


def test_the_autoscaler_is_told_that_there_are_standby_pods() -> None:
    rendering = build(MANIFESTS / "overlays" / "knative", [MANIFESTS / "components" / "standby"])
    patch = rendering.patches[Identity("Deployment", "knative-serving", "autoscaler")]
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "GALAXY_STANDBY", "value": "on"}]


def test_a_full_node_has_a_place_for_it() -> None:
    """By a class of ours: where there are quotas for the system's, those of our namespace are none."""
    assert POD["priorityClassName"] == MINE["PriorityClass"]["metadata"]["name"]
    assert MINE["PriorityClass"]["value"] == 1_000_000_000  # nobody may have a higher one but the system


def test_the_policy_is_about_standby_pods_alone() -> None:
    """Anybody may write one label into a template."""
    policy = EVERYTHING.objects[Identity("ValidatingAdmissionPolicy", "", names.POLICY)]["spec"]
    chosen = policy["matchConstraints"]["objectSelector"]["matchExpressions"]
    assert {each["key"]: each["operator"] for each in chosen} == dict.fromkeys(
        (names.ADOPTION, names.POOL_LABEL), "Exists"
    )
