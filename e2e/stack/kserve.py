"""KServe as it is released, from the configuration of its own module: an addition to a stack that is up.

Its manager runs as a pod of the kubelet stand-in, and its webhooks are asked by their Service, as in a cluster.
Changed is only what a test machine must have: names of images, a certificate of our own making where cert-manager
would put one, no Istio and no Ingress, and no wait before the first probe. Settings of ours never come here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from e2e import build
from e2e.stack import knative
from e2e.stack.api import Api, ApiError, Object, documents, wait_until
from e2e.stack.certificates import Authority
from e2e.stack.kubelet import programs

NAMESPACE = "kserve"
DEPLOYMENT = "kserve-controller-manager"
_SERVICE = "kserve-webhook-server-service"
_CERTIFICATE = "kserve-webhook-server-cert"
#: Below a folder that machines have; the manager looks for its certificate below TMPDIR.
_TEMPORARY = "/mnt/kserve"
_FOLDERS = ("crd/full", "rbac", "manager", "webhook", "configmap", "storagecontainers")
#: Another manager's, and what an authenticating proxy before the metrics would need.
_LEFT_OUT = ("llmisvc", "localmodel", "localmodelnode", "auth_proxy")
#: In KServe's own manifests these get their namespace from a kustomization.
_NAMESPACED = ("ServiceAccount", "Role", "RoleBinding", "Secret", "Service", "Deployment", "ConfigMap")
_INGRESS = {"disableIstioVirtualHost": True, "disableIngressCreation": True}
READY_S = 60


def objects(authority: Authority) -> Iterator[Object]:
    root = build.configuration(family="kserve") / "kserve" / "config"
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    yield _certificate(authority)
    for folder in _FOLDERS:
        for file in sorted((root / folder).rglob("*.yaml")):
            if not any(part.startswith(_LEFT_OUT) for part in file.relative_to(root).parts):
                yield from (_adapted(obj, authority) for obj in documents(file) if _is_object(obj))


def _is_object(obj: Object) -> bool:
    """Not a kustomization, nor a patch of one."""
    return "metadata" in obj and not obj["apiVersion"].startswith("kustomize")


def _adapted(obj: Object, authority: Authority) -> Object:
    kind, metadata = obj["kind"], obj["metadata"]
    metadata.pop("creationTimestamp", None)
    if kind in _NAMESPACED:
        metadata["namespace"] = NAMESPACE
    for subject in obj.get("subjects") or ():
        subject["namespace"] = NAMESPACE
    if kind.endswith("WebhookConfiguration"):
        for hook in obj["webhooks"]:
            hook["clientConfig"]["service"] |= {"name": _SERVICE, "namespace": NAMESPACE}
            hook["clientConfig"]["caBundle"] = base64.b64encode(authority.certificate).decode()
    if kind == "Deployment":
        _adapt_manager(obj["spec"]["template"]["spec"]["containers"][0])
    if metadata["name"] == "inferenceservice-config":
        data = obj["data"]
        data.pop("_example", None)
        data["ingress"] = json.dumps({**json.loads(data["ingress"]), **_INGRESS})
    return obj


def _adapt_manager(container: dict[str, Any]) -> None:
    # To elect a leader it would have to be told its namespace by a file of a real pod.
    del container["command"], container["args"]
    container["image"] = programs.KSERVE
    container["env"].append({"name": "TMPDIR", "value": _TEMPORARY})
    (mount,) = container["volumeMounts"]
    mount["mountPath"] = f"{_TEMPORARY}/k8s-webhook-server/serving-certs"
    for probe in ("readinessProbe", "livenessProbe"):
        del container[probe]["initialDelaySeconds"]


def _certificate(authority: Authority) -> Object:
    pair = authority.issue(_SERVICE, [f"{_SERVICE}.{NAMESPACE}.svc"])
    data = {"tls.crt": pair.certificate, "tls.key": pair.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": _CERTIFICATE, "namespace": NAMESPACE},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }


def install(api: Api) -> None:
    """Returns when the manager works and its webhooks answer. Again: with another certificate."""
    if absent := build.missing(None, "kserve"):
        raise RuntimeError(f"not built yet: {', '.join(absent)} (python -m e2e.build)")
    api.apply_all(sorted(objects(Authority("e2e-kserve")), key=_order))
    knative.wait_rolled_out(api, DEPLOYMENT, READY_S, NAMESPACE)
    wait_until("KServe's webhooks to answer", lambda: _refuses(api), READY_S)


def remove(api: Api) -> None:
    """All but its namespace, which takes its time. No service may be left: who takes its finalizer out goes, too."""
    everything = sorted(objects(Authority("e2e-kserve")), key=_order, reverse=True)
    for obj in everything:
        metadata = obj["metadata"]
        if obj["kind"] not in ("ClusterStorageContainer", "Namespace"):
            api.delete(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"])
    definitions = [obj for obj in everything if obj["kind"] == "CustomResourceDefinition"]
    wait_until(
        "KServe's definitions to be gone",
        lambda: not any(_is_there(api, obj) for obj in definitions),
        READY_S,
    )


def _is_there(api: Api, obj: Object) -> bool:
    try:
        api.get(obj["apiVersion"], obj["kind"], "", obj["metadata"]["name"])
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


def _order(obj: Object) -> bool:
    """What its webhooks are asked about comes after nothing, since they answer only later."""
    return str(obj["kind"]).endswith("WebhookConfiguration")


def _refuses(api: Api) -> bool:
    """What only its webhook would refuse."""
    wrong: Object = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "0-begins-with-no-letter", "namespace": "default"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "vLLM"}}}},
    }
    path = api.path(wrong["apiVersion"], wrong["kind"], "default")
    try:
        api.call("POST", f"{path}?dryRun=All", wrong)
    except ApiError as error:
        if "denied the request" in str(error):
            return True
        raise
    return False
