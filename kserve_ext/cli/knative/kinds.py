"""Where the API server has the objects of our manifests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kserve_ext.kube import kinds
from kserve_ext.kube.kinds import Kind

KNATIVE_SERVINGS: Final = Kind("operator.knative.dev", "v1beta1", "knativeservings", "KnativeServing")
ACCESS_REVIEWS: Final = Kind(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
_OURS: Final = (
    kinds.ADMISSION_POLICIES,
    kinds.ADMISSION_POLICY_BINDINGS,
    kinds.CLUSTER_ROLES,
    kinds.CLUSTER_ROLE_BINDINGS,
    kinds.CONFIG_MAPS,
    kinds.DAEMON_SETS,
    kinds.DEPLOYMENTS,
    kinds.MUTATING_WEBHOOKS,
    kinds.POD_DISRUPTION_BUDGETS,
    kinds.ROLE_BINDINGS,
    kinds.ROLES,
    kinds.SECRETS,
    kinds.SERVICE_ACCOUNTS,
    kinds.SERVICES,
    kinds.VALIDATING_WEBHOOKS,
    Kind(
        "serving.kserve.io",
        "v1alpha1",
        "clusterservingruntimes",
        "ClusterServingRuntime",
        namespaced=False,
    ),
    Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Kind("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
    Kind("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
)
_BY_NAME: Final = {(kind.api_version, kind.kind): kind for kind in _OURS}


def kind_named(api_version: str, kind: str) -> Kind:
    return _BY_NAME[api_version, kind]


def kind_of(obj: Mapping[str, Any]) -> Kind:
    return kind_named(obj["apiVersion"], obj["kind"])
