"""A Knative Service of the user server: made for one test, looked at, deleted."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from e2e.stack.api import Api, Object, condition, wait_until
from e2e.stack.kubelet.programs import USER_SERVER

NAMESPACE = "default"
SERVING = "serving.knative.dev/v1"
AUTOSCALING = "autoscaling.internal.knative.dev/v1alpha1"
NETWORKING = "networking.internal.knative.dev/v1alpha1"
READY_S = 90
#: For a service that is at zero as soon as it is ready: it never had a pod, and nobody waits for windows to pass.
ASLEEP = {"initial-scale": "0"}
_RUN = secrets.token_hex(2)
_numbers = itertools.count(1)


class Service:
    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        self.name = name

    @property
    def revision(self) -> str:
        """The latest ready one."""
        status = self.api.get(SERVING, "Service", NAMESPACE, self.name)["status"]
        return str(status["latestReadyRevisionName"])

    def pods(self, revision: str = "") -> list[Object]:
        """Without those that are on their way out."""
        label = (
            f"serving.knative.dev/revision={revision}"
            if revision
            else f"serving.knative.dev/service={self.name}"
        )
        found = self.api.list("v1", "Pod", NAMESPACE, label)
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def ready_pods(self, revision: str = "") -> list[Object]:
        return [pod for pod in self.pods(revision) if condition(pod, "Ready") == "True"]

    def wait_pods(self, count: Callable[[int], bool], what: str, seconds: float = READY_S) -> list[Object]:
        """Until the number of ready pods fits and no others are on their way."""
        seen: list[int] = []

        def fits() -> list[Object] | bool:
            pods = self.pods()
            ready = [pod for pod in pods if condition(pod, "Ready") == "True"]
            seen[:] = [len(ready), len(pods)]
            return (ready or True) if len(pods) == len(ready) and count(len(ready)) else False

        found = wait_until(
            f"{self.name}: {what}", fits, seconds, detail=lambda: f"(ready, all) = {seen}; {self.story()}"
        )
        return found if isinstance(found, list) else []

    def wait_zero(self, seconds: float = READY_S) -> None:
        """No pods but those on their way out, whom queue-proxy keeps half a minute longer."""
        self.wait_pods(lambda n: n == 0, "no pods", seconds)

    def autoscaler(self) -> Object:
        return self.api.get(AUTOSCALING, "PodAutoscaler", NAMESPACE, self.revision)

    def story(self) -> str:
        """What the autoscaler and the network say, for the message of a failed wait."""
        try:
            pa = self.autoscaler()
            sks = self.api.get(NETWORKING, "ServerlessService", NAMESPACE, self.revision)
        except Exception as error:
            return repr(error)
        status = pa.get("status", {})
        return (
            f"PodAutoscaler desired {status.get('desiredScale')} actual {status.get('actualScale')} "
            f"Active={condition(pa, 'Active')}; ServerlessService mode {sks['spec'].get('mode')}"
        )

    def update(self, patch: Object) -> None:
        """A merge patch of the spec; returns when the new generation is ready."""
        self.api.patch(SERVING, "Service", NAMESPACE, self.name, {"spec": patch})
        self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            obj = self.api.get(SERVING, "Service", NAMESPACE, self.name)
            status = obj.get("status", {})
            return (
                status.get("observedGeneration") == obj["metadata"]["generation"]
                and condition(obj, "Ready") == "True"
            )

        wait_until(f"Service {self.name} ready", ready, READY_S, detail=self._why)

    def _why(self) -> str:
        obj = self.api.get(SERVING, "Service", NAMESPACE, self.name)
        return str(
            [entry for entry in obj.get("status", {}).get("conditions", []) if entry["status"] != "True"]
        )


def template(
    annotations: Mapping[str, str] | None = None,
    *,
    concurrency: int | None = None,
    http2: bool = False,
    env: Mapping[str, str] | None = None,
    **spec: Any,
) -> Object:
    """`annotations` without their prefix; `spec`: further fields of a Revision's spec, such as timeoutSeconds."""
    container: Object = {
        "image": USER_SERVER,
        "ports": [{"containerPort": 8080, **({"name": "h2c"} if http2 else {})}],
        "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
    }
    if concurrency is not None:
        spec["containerConcurrency"] = concurrency
    marks = {"window": "6s", **(annotations or {})}
    return {
        "metadata": {
            "annotations": {f"autoscaling.knative.dev/{name}": value for name, value in marks.items()}
        },
        "spec": {"containers": [container], **spec},
    }


@contextmanager
def deployed(api: Api, tag: str, template: Object, ready: bool = True) -> Iterator[Service]:
    """Ready on entry, unless the test waits for that; deleted on exit, without waiting for its pods' grace."""
    name = f"{tag}-{_RUN}-{next(_numbers)}"
    service = Service(api, name)
    api.create(
        {
            "apiVersion": SERVING,
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"template": template},
        }
    )
    try:
        if ready:
            service.wait_ready()
        yield service
    finally:
        api.delete(SERVING, "Service", NAMESPACE, name)
        for pod in api.list("v1", "Pod", NAMESPACE, f"serving.knative.dev/service={name}"):
            api.delete("v1", "Pod", NAMESPACE, pod["metadata"]["name"], grace_s=1)
