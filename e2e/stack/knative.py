"""Knative Serving as it is released, from the configuration of its own modules.

Its Deployments run as pods of the kubelet stand-in. Changed is only what a test machine must have: image names, the
queue-proxy's image, no look-ups at registries, and shorter waits. Settings of ours never come here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from e2e import build
from e2e.stack.api import Api, Object, documents, wait_until
from e2e.stack.kubelet import programs
from e2e.stack.place import SYSTEM_NAMESPACE

_KO = "ko://knative.dev/serving/cmd/"
DEPLOYMENTS = ("activator", "autoscaler", "controller", "webhook")
#: ConfigMap -> what is set in it.
SETTINGS = {
    "config-deployment": {
        "queue-sidecar-image": programs.stock_image("queue"),
        "registries-skipping-tag-resolving": "knative.local,galaxy.local,e2e.local",
    },
    # 30 s as shipped: every test of scale to zero would wait it out.
    "config-autoscaler": {"scale-to-zero-grace-period": "6s", "allow-zero-initial-scale": "true"},
    # Those of Kubernetes' own parts; 60 s, 40 s and 10 s as shipped, which every test of a take-over would wait out.
    "config-leader-election": {"lease-duration": "15s", "renew-deadline": "10s", "retry-period": "2s"},
}
READY_S = 120


def objects() -> Iterator[Object]:
    config = build.configuration()
    core = config / "serving" / "config" / "core"
    sources = [config / "networking", config / "caching", core]
    for obj in documents(*sources):
        if obj["kind"] == "HorizontalPodAutoscaler":
            continue  # there is no source of CPU metrics
        if obj["kind"] == "Deployment":
            for container in obj["spec"]["template"]["spec"]["containers"]:
                container["image"] = _image(container["image"])
                container["env"].append({"name": "KUBERNETES_MIN_VERSION", "value": "v1.30.0"})
        if obj["kind"] == "Image":
            obj["spec"]["image"] = _image(obj["spec"]["image"])
        if obj["kind"] == "ConfigMap":
            obj["data"] = {**(obj.get("data") or {}), **SETTINGS.get(obj["metadata"]["name"], {})}
        yield obj


def _image(image: str) -> str:
    return programs.stock_image(image.removeprefix(_KO)) if image.startswith(_KO) else image


def install(api: Api) -> None:
    """Returns when every part is ready and the webhooks answer."""
    api.apply_all(objects())
    for name in DEPLOYMENTS:
        wait_rolled_out(api, name)
    wait_hooked(api)


def wait_hooked(api: Api) -> None:
    def hooked() -> bool:
        for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
            for obj in api.list("admissionregistration.k8s.io/v1", kind, ""):
                if not all(
                    hook["clientConfig"].get("caBundle") and hook.get("rules") for hook in obj["webhooks"]
                ):
                    return False
        return True

    wait_until("Knative's webhooks to be registered", hooked, READY_S)


def set_image(api: Api, deployment: str, image: str) -> None:
    """A rolling update, as somebody who swaps the implementation would do."""
    patch = {"spec": {"template": {"spec": {"containers": [{"name": deployment, "image": image}]}}}}
    api.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, deployment, patch, strategic=True)


def wait_rolled_out(
    api: Api, deployment: str, seconds: float = READY_S, namespace: str = SYSTEM_NAMESPACE
) -> None:
    """All replicas are of the current template and ready, and none of another is left."""
    last: dict[str, Any] = {}

    def rolled_out() -> bool:
        obj = api.get("apps/v1", "Deployment", namespace, deployment)
        status = obj.get("status", {})
        last.update(status)
        wanted = obj["spec"].get("replicas", 1)
        return bool(
            status.get("observedGeneration", 0) >= obj["metadata"]["generation"]
            and status.get("updatedReplicas", 0) == wanted
            and status.get("readyReplicas", 0) == wanted
            and status.get("replicas", 0) == wanted
        )

    wait_until(f"Deployment {deployment} to roll out", rolled_out, seconds, detail=lambda: str(last))
