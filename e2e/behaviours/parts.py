"""The activator's and the autoscaler's pods: restarted, killed, scaled, with the other implementation's beside."""

from __future__ import annotations

import copy
import datetime
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from e2e.stack import knative
from e2e.stack.api import Api, condition, wait_until
from e2e.stack.implementations import grant, image
from e2e.stack.place import SYSTEM_NAMESPACE


def start_anew(api: Api, deployment: str) -> None:
    """As `kubectl rollout restart`, also twice within a second."""
    mark = {"kubectl.kubernetes.io/restartedAt": datetime.datetime.now(datetime.UTC).isoformat()}
    patch = {"spec": {"template": {"metadata": {"annotations": mark}}}}
    api.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, deployment, patch)


def restart(api: Api, deployment: str) -> None:
    """And waits for the end of it."""
    start_anew(api, deployment)
    knative.wait_rolled_out(api, deployment)


def system_pods(api: Api, name: str) -> list[str]:
    found = api.list("v1", "Pod", SYSTEM_NAMESPACE, f"app={name}")
    return [
        pod["metadata"]["name"]
        for pod in found
        if not pod["metadata"].get("deletionTimestamp") and condition(pod, "Ready") == "True"
    ]


def processes(api: Api, namespace: str, pod: str) -> list[int]:
    statuses = api.get("v1", "Pod", namespace, pod)["status"]["containerStatuses"]
    return [int(status["containerID"].removeprefix("process://")) for status in statuses]


def kill(api: Api, namespace: str, pod: str) -> None:
    """kill -9 of every process of the pod."""
    for pid in processes(api, namespace, pod):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def standing_still(api: Api, namespace: str, pod: str) -> Iterator[None]:
    """Every process of the pod stopped, as on a node that hangs; afterwards they go on as if nothing had been."""
    stopped = processes(api, namespace, pod)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def wait_gone(api: Api, pods: Iterable[str], seconds: float = 90) -> None:
    """Pods of Knative's own, with all that they had under way."""
    former = set(pods)

    def left() -> set[str]:
        return former & {pod["metadata"]["name"] for pod in api.list("v1", "Pod", SYSTEM_NAMESPACE)}

    wait_until(f"the end of {sorted(former)}", lambda: not left(), seconds)


def restarts(api: Api, namespace: str, pod: str) -> int:
    status = api.get("v1", "Pod", namespace, pod)["status"]
    return sum(container["restartCount"] for container in status.get("containerStatuses") or [])


def failing_to_start(api: Api, name: str) -> bool:
    """Whether one of its pods has ended by itself again and again, and isn't ready."""
    ready = system_pods(api, name)
    pods = [pod["metadata"]["name"] for pod in api.list("v1", "Pod", SYSTEM_NAMESPACE, f"app={name}")]
    return any(restarts(api, SYSTEM_NAMESPACE, pod) > 1 for pod in pods if pod not in ready)


@contextmanager
def replicas(api: Api, deployment: str, count: int) -> Iterator[None]:
    def scale(n: int) -> None:
        api.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, deployment, {"spec": {"replicas": n}})
        knative.wait_rolled_out(api, deployment)

    scale(count)
    try:
        yield
    finally:
        scale(1)


def holder(api: Api) -> str:
    """The pod that holds the autoscaler's only bucket."""
    lease = api.get("coordination.k8s.io/v1", "Lease", SYSTEM_NAMESPACE, "autoscaler-bucket-00-of-01")
    return str(lease["spec"].get("holderIdentity") or "").partition("_")[0]


@contextmanager
def beside(api: Api, part: str, implementation: str) -> Iterator[None]:
    """One more pod of the part, of the given implementation, behind the same Service."""
    if implementation == "ours":
        grant(api)
    name = f"{part}-beside"
    obj = copy.deepcopy(api.get("apps/v1", "Deployment", SYSTEM_NAMESPACE, part))
    obj.pop("status")
    obj["metadata"] = {"name": name, "namespace": SYSTEM_NAMESPACE}
    template = obj["spec"]["template"]
    template["spec"]["containers"][0]["image"] = image(implementation, part)
    for labels in (template["metadata"]["labels"], obj["spec"]["selector"]["matchLabels"]):
        labels["beside"] = "true"
    api.create(obj)
    try:
        knative.wait_rolled_out(api, name)
        yield
    finally:
        api.delete("apps/v1", "Deployment", SYSTEM_NAMESPACE, name)
