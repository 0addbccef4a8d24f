"""What the manifests say: that Knative's objects stay what they were but for the images, and what ours may do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kserve_ext.api.standby.names import POLICY
from kserve_ext.cli.knative import plan
from kserve_ext.cli.knative.kinds import kind_of
from kserve_ext.cli.knative.kustomize import MANIFESTS, BadManifest, Identity, Image, build
from kserve_ext.cli.knative.parts import NAMESPACE, PART_LABEL, PARTS, TESTED, Part, is_ours

OVERLAY = MANIFESTS / "overlays" / "knative"
COMPONENTS = [MANIFESTS / "components" / name for name in plan.COMPONENTS]
EVERYTHING = build(OVERLAY, COMPONENTS)
OBJECTS = list(EVERYTHING.objects.values())
DEPLOYMENTS = {key.name: obj for key, obj in EVERYTHING.objects.items() if key.kind == "Deployment"}
WORKLOADS = [obj for obj in OBJECTS if obj["kind"] in ("Deployment", "DaemonSet")]
#: What Services, autoscaling, budgets, gateways and the kubelet rely on, from the manifests of Knative 1.21.
ACTIVATOR_PORTS = {"metrics": 9090, "profiling": 8008, "http1": 8012, "h2c": 8013}
AUTOSCALER_PORTS = {"metrics": 9090, "profiling": 8008, "websocket": 8080}
SELECTORS = {"activator": {"app": "activator", "role": "activator"}, "autoscaler": {"app": "autoscaler"}}
NEEDED_ENV = {"POD_NAME", "POD_IP", "SYSTEM_NAMESPACE", "CONFIG_LOGGING_NAME", "CONFIG_OBSERVABILITY_NAME"}


def container_of(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: f"{obj['kind']}-{obj['metadata']['name']}")
def test_every_object_is_named_placed_and_labelled(obj: dict[str, Any]) -> None:
    metadata = obj["metadata"]
    assert metadata["name"]
    assert metadata.get("namespace") == (NAMESPACE if kind_of(obj).namespaced else None)
    assert metadata["labels"][PART_LABEL] in {"activator", "autoscaler"}
    if obj["kind"] != "Deployment":
        assert metadata["name"].startswith("galaxy-")  # never a name that Knative may use
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "kserve-galaxy"


def test_ours_are_what_the_overlay_adds() -> None:
    assert {key.name for key in EVERYTHING.patches} == {part.name for part in PARTS}
    assert {part.name: container_of(DEPLOYMENTS[part.name])["image"] for part in PARTS} == {
        part.name: f"{part.image}:{version()}" for part in PARTS
    }


def version() -> str:
    line = next(
        line
        for line in (Path(__file__).parents[2] / "setup.cfg").read_text().splitlines()
        if line.startswith("version")
    )
    return line.partition("=")[2].strip()


@pytest.mark.parametrize("part", PARTS)
def test_nothing_of_knatives_changes_but_the_image(part: Part) -> None:
    patch = build(OVERLAY).patches[Identity("Deployment", NAMESPACE, part.name)]
    assert set(patch) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(patch["metadata"]) == {"name", "namespace"}
    assert set(patch["spec"]) == {"template"}
    assert set(patch["spec"]["template"]) == {"spec"}
    assert set(patch["spec"]["template"]["spec"]) == {"containers"}
    assert set(container_of(patch)) == {"name", "image"}


@pytest.mark.parametrize(
    ("name", "ports", "probed"),
    [("activator", ACTIVATOR_PORTS, 8012), ("autoscaler", AUTOSCALER_PORTS, 8080)],
)
def test_labels_ports_probes_and_environment_are_knatives(
    name: str, ports: dict[str, int], probed: int
) -> None:
    spec = DEPLOYMENTS[name]["spec"]
    assert spec["selector"]["matchLabels"] == SELECTORS[name]
    assert SELECTORS[name].items() <= spec["template"]["metadata"]["labels"].items()
    container = container_of(DEPLOYMENTS[name])
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    assert container["readinessProbe"]["httpGet"] == container["livenessProbe"]["httpGet"] == {"port": probed}
    assert {variable["name"] for variable in container["env"]} >= NEEDED_ENV
    assert "command" not in container
    assert "args" not in container
    release = DEPLOYMENTS[name]["metadata"]["labels"]["app.kubernetes.io/version"]
    assert release.rpartition(".")[0] in TESTED


def test_service_accounts_and_grace_are_knatives() -> None:
    pods = {name: deployment["spec"]["template"]["spec"] for name, deployment in DEPLOYMENTS.items()}
    assert (pods["activator"]["serviceAccountName"], pods["autoscaler"]["serviceAccountName"]) == (
        "activator",
        "controller",
    )
    assert pods["activator"]["terminationGracePeriodSeconds"] == 600


def test_the_autoscaler_of_pods_is_the_one_writer_of_the_number_of_activators() -> None:
    assert "replicas" not in DEPLOYMENTS["activator"]["spec"]
    assert not [key for key in EVERYTHING.objects if key.kind == "HorizontalPodAutoscaler"]


@pytest.mark.parametrize("name", ["activator", "autoscaler"])
def test_pods_fit_the_restricted_standard(name: str) -> None:
    pod = DEPLOYMENTS[name]["spec"]["template"]["spec"]
    container = container_of(DEPLOYMENTS[name])
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod)
    assert "volumes" not in pod
    assert container["resources"]["limits"]["memory"]
    assert not any("hostPort" in port for port in container["ports"])


def test_knatives_accounts_may_beyond_knatives_roles_only_read_slices_replica_sets_and_our_policy() -> None:
    assert permissions("ClusterRole", "activator") == [
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["get", "list", "watch"],
        }
    ]
    assert permissions("ClusterRole", "controller") == [
        # Component standby.
        {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["get", "list"]},
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
            "resourceNames": [POLICY],
            "verbs": ["list", "watch"],
        },
    ]
    assert permissions("Role", "controller") == []
    # Knative's ClusterRoles with this label go into what its controller may do.
    assert not [o for o in OBJECTS if "serving.knative.dev/controller" in o["metadata"]["labels"]]


def permissions(kind: str, account: str) -> list[dict[str, Any]]:
    """The rules of all roles of this kind that a service account has."""
    subject = {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
    return [
        rule
        for obj in OBJECTS
        if obj["kind"] == f"{kind}Binding" and subject in obj["subjects"]
        for rule in EVERYTHING.objects[
            Identity(kind, obj["metadata"].get("namespace", ""), obj["roleRef"]["name"])
        ]["rules"]
    ]


def test_budgets_and_policies_select_pods_of_these_deployments() -> None:
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in WORKLOADS]
    selectors = [
        obj["spec"].get("podSelector") or obj["spec"]["selector"]
        for obj in OBJECTS
        if obj["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor")
    ]
    assert len(selectors) >= 5
    for selector in selectors:
        assert any(selector["matchLabels"].items() <= each.items() for each in labels)


@pytest.mark.parametrize("name", ["activator", "autoscaler"])
def test_policies_open_every_port_that_is_served(name: str) -> None:
    policy = EVERYTHING.objects[Identity("NetworkPolicy", NAMESPACE, f"galaxy-{name}")]
    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    served = ACTIVATOR_PORTS if name == "activator" else AUTOSCALER_PORTS
    assert opened >= set(served.values()) - {
        8008
    }  # profiles are for kubectl port-forward, which policies do not shut out


def test_alerts_are_about_metrics_that_there_are() -> None:
    (rules,) = (obj for obj in OBJECTS if obj["kind"] == "PrometheusRule")
    named = re.findall(r"kn_activator_\w+|kn_revision_request_\w+", yaml.safe_dump(rules))
    folder = Path(__file__).parents[2] / "activator_replacement" / "knative"
    exported = "".join(file.read_text() for file in folder.rglob("metrics.py"))
    assert len(named) == 2
    assert all(f'"{name}"' in exported for name in named)


@pytest.mark.parametrize("file", sorted(MANIFESTS.rglob("*.yaml")), ids=lambda file: file.name)
def test_files_are_reached_from_a_kustomization_of_their_folder(file: Path) -> None:
    if file.name == "kustomization.yaml":
        return
    above = next(folder for folder in file.parents if (folder / "kustomization.yaml").exists())
    text = yaml.safe_load((above / "kustomization.yaml").read_text())
    named = [*text.get("resources", ()), *(patch["path"] for patch in text.get("patches", ()))]
    assert str(file.relative_to(above)) in named


@pytest.mark.parametrize(
    ("reference", "image", "expected"),
    [
        ("a/b", Image("a/b", "", "2"), "a/b:2"),
        ("a/b:1", Image("a/b", "r:5000/c", ""), "r:5000/c:1"),
        ("a/b:1", Image("a/b", "c", "2"), "c:2"),
        ("r:5000/a/b:1", Image("r:5000/a/b", "", "2"), "r:5000/a/b:2"),
        ("a/b@sha256:0", Image("a/b", "c", ""), "c@sha256:0"),
        ("a/bc:1", Image("a/b", "", "2"), "a/bc:1"),
    ],
)
def test_images_are_renamed_as_kustomize_does(
    tmp_path: Path, reference: str, image: Image, expected: str
) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [pod.yaml]")
    pod = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"image": reference}]}}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    (obj,) = build(tmp_path, images=[image]).objects.values()
    assert obj["spec"]["containers"][0]["image"] == expected


@pytest.mark.parametrize(
    ("image", "ours"),
    [
        ("galaxy-activator", True),
        ("galaxy-activator:0.1.0", True),
        ("r.example:5000/team/galaxy-activator@sha256:0", True),
        ("galaxy-activators:1", False),
        ("other-galaxy-activator:1", False),
        ("stock.example/activator", False),
        ("", False),
    ],
)
def test_whose_image_it_is(image: str, ours: bool) -> None:
    assert is_ours(image, Part("activator", "galaxy-activator")) is ours


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("resources: [gone.yaml]", "gone.yaml"),
        ("namePrefix: x", "namePrefix is not among"),
        ("patches: [{path: patch.yaml}]", "there is no deployment/x to patch"),
        ("resources: [", "kustomization.yaml"),
        ("[1]", "expected objects"),
    ],
)
def test_what_cannot_be_rendered_names_the_file(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "kustomization.yaml").write_text(text)
    (tmp_path / "patch.yaml").write_text("{kind: Deployment, metadata: {name: x}}")
    with pytest.raises(BadManifest) as raised:
        build(tmp_path)
    assert why in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_what_the_docs_say_of_going_back_by_hand_is_about_every_kind_that_is_added() -> None:
    text = (Path(__file__).parents[2] / "docs" / "install.md").read_text()
    said = text.split("## Going back by hand")[1].split("\n## ")[0]
    named = set(re.findall(r"[a-z]+", said))
    knatives = {("Deployment", part.name) for part in PARTS}
    for obj in EVERYTHING.objects.values():
        if (obj["kind"], obj["metadata"]["name"]) in knatives:
            continue
        plural = kind_of(obj).plural
        by_name = plural in ("deployments", "daemonsets") and obj["metadata"]["name"] in said
        assert plural in named or by_name, plural
        assert by_name or obj["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kserve-galaxy"
