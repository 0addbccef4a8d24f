"""The component webhook: what it may do, what the API server asks it, and that nothing stops where it is away."""

from __future__ import annotations

from typing import Any

import pytest

from autoscaler_shim.webhook import keeper, settings
from kserve_ext.api.admission import PLACES
from kserve_ext.cli.knative import plan
from kserve_ext.cli.knative.kinds import kind_of
from kserve_ext.kube import kinds
from tests.manifests.test_manifests import EVERYTHING, permissions, version

Object = dict[str, Any]
MINE = {obj["kind"]: obj for key, obj in EVERYTHING.objects.items() if key.name == keeper.NAME}
HOOKS = [hook for kind, obj in MINE.items() if "Webhook" in kind for hook in obj["webhooks"]]
POD = MINE["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
#: Resource -> kind, of what is asked about.
RESOURCES = {
    kind.plural: kind.kind
    for kind in (
        kinds.CONFIGURATIONS,
        kinds.INFERENCE_SERVICES,
        kinds.KNATIVE_SERVICES,
        kinds.REVISIONS,
    )
} | {"servingruntimes": "ServingRuntime", "clusterservingruntimes": "ClusterServingRuntime"}


def test_it_may_keep_its_own_objects_and_nothing_else() -> None:
    assert permissions("Role", keeper.NAME) == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": [keeper.NAME],
            "verbs": ["get", "patch"],
        }
    ]
    assert permissions("ClusterRole", keeper.NAME) == [
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": [kinds.MUTATING_WEBHOOKS.plural, kinds.VALIDATING_WEBHOOKS.plural],
            "resourceNames": [keeper.NAME],
            "verbs": ["get", "patch"],
        }
    ]


def test_it_runs_two_with_the_autoscalers_image() -> None:
    assert MINE["Deployment"]["spec"]["replicas"] == 2
    assert MINE["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert CONTAINER["command"] == ["python", "-m", "autoscaler_shim.webhook"]
    assert CONTAINER["image"] == f"galaxy-autoscaler:{version()}"
    assert POD["serviceAccountName"] == MINE["ServiceAccount"]["metadata"]["name"]
    assert POD["terminationGracePeriodSeconds"] > settings.Settings().drain_s + 10
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    (other,) = (o for k, o in EVERYTHING.objects.items() if (k.kind, k.name) == ("Deployment", "autoscaler"))
    assert (
        CONTAINER["securityContext"] == other["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    )


def test_ports_lead_from_the_api_server_to_the_process() -> None:
    served = settings.read({})
    assert {port["name"]: port["containerPort"] for port in CONTAINER["ports"]} == {
        "https": served.port,
        "metrics": served.metrics_port,
    }
    (port,) = MINE["Service"]["spec"]["ports"]
    assert port["targetPort"] == served.port
    assert MINE["Service"]["spec"]["selector"].items() <= (
        MINE["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    )
    for hook in HOOKS:
        assert hook["clientConfig"]["service"] == {
            "name": keeper.NAME,
            "namespace": "knative-serving",
            "path": "/mutate" if "revisions" in hook["name"] else "/validate",
            "port": port["port"],
        }


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["name"])
def test_where_it_is_away_the_cluster_goes_on(hook: Object) -> None:
    assert hook["failurePolicy"] == "Ignore"
    assert hook["timeoutSeconds"] == 5
    assert hook["sideEffects"] == "None"  # so dry runs are answered, too
    (system,) = hook["namespaceSelector"]["matchExpressions"]
    assert system["operator"] == "NotIn"
    assert system["values"] == ["kube-system", "knative-serving", "kserve"]
    assert hook["matchConditions"]
    assert "caBundle" not in hook["clientConfig"]


def test_it_is_asked_about_what_it_knows() -> None:
    (judged,) = (hook for hook in HOOKS if hook["name"].startswith("annotations"))
    asked = {
        (group, RESOURCES[resource])
        for rule in judged["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert asked == set(PLACES)
    for place in PLACES.values():
        for path in (*place.merged, *place.idle):
            assert f"o.?{'.?'.join(path)}" in judged["matchConditions"][0]["expression"]


def test_the_command_adds_it_for_the_autoscaler_and_before_it() -> None:
    planned = plan.make(components=["webhook"], registry="r.example", tag="9", namespace="elsewhere")
    added = [obj["kind"] for obj in planned.added["autoscaler"] if obj["metadata"]["name"] == keeper.NAME]
    assert sorted(added) == sorted(MINE)
    # Its pods are ready only once they have been able to say whom to trust.
    assert added.index("Deployment") > max(
        i for i, kind in enumerate(added) if "Webhook" in kind or "Role" in kind
    )
    (deployment,) = (obj for obj in planned.added["autoscaler"] if obj["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "r.example/galaxy-autoscaler:9"
    for obj in planned.added["autoscaler"]:
        assert obj["metadata"].get("namespace") == ("elsewhere" if kind_of(obj).namespaced else None)
    assert not [obj for obj in planned.added["activator"] if obj["metadata"]["name"] == keeper.NAME]
