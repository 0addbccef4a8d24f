"""Standby pods for tests: the component installed, pools of a test's own, and that everybody agrees on a revision."""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.behaviours.client import Answer
from e2e.behaviours.parts import system_pods
from e2e.behaviours.services import NAMESPACE, Service, deployed, template
from e2e.behaviours.test_install import OPTIONS, run
from e2e.stack.api import Api, Object, condition, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.implementations import grant, images, roll_out, use
from e2e.stack.place import SYSTEM_NAMESPACE
from kserve_ext.api.standby import names

AGENT = "galaxy-node-agent"
RUNTIME = "bench.peers.tiny_runtime"
UID = "serving.knative.dev/revisionUID"
GPU = "nvidia.com/gpu"
FILL_S = 90
_numbers = itertools.count(1)


@contextmanager
def installing(stack: Cluster, nodes: int = 1) -> Iterator[Api]:
    """Ours with the component, over what Knative shipped; in the end what ran before."""
    api = stack.api
    before = images(api)
    use(api, "stock")
    run(stack, "install", *OPTIONS, "--component", "standby")
    wait_until("the autoscaler to hear each node's agent", lambda: agents_heard(api) == nodes, 60)
    try:
        yield api
    finally:
        run(stack, "uninstall")
        if before != images(api):
            grant(api)
            roll_out(api, before)


def agents_heard(api: Api) -> int:
    """Of all autoscalers."""
    return sum(figures(api, "agents_heard"))


def figures(api: Api, name: str, pool: str = "") -> list[int]:
    """What each autoscaler says; `pool`: the digest of which."""
    found = []
    for pod in system_pods(api, "autoscaler"):
        address = api.get("v1", "Pod", SYSTEM_NAMESPACE, pod)["status"]["podIP"]
        with urllib.request.urlopen(f"http://{address}:9090/metrics", timeout=5) as page:
            for line in page.read().decode().splitlines():
                series, _, value = line.rpartition(" ")
                of, _, labels = series.partition("{")
                if of == f"galaxy_standby_{name}" and (f'="{pool}"' in labels if pool else not labels):
                    found.append(int(float(value)))
    return found


def wait_can_hold(api: Api) -> None:
    """There has to be a standby pod."""
    wait_until("pods can be held", lambda: all(figures(api, "can_hold") or [0]), 60)


class Pool:
    """Pods of the shape of one test, whose model lies in a file of its own."""

    def __init__(self, api: Api, folder: Path, gpus: int = 0, **spec: Any) -> None:
        """`gpus`: of each pod, which a node has only where a test says so; `spec`: further fields of revisions'."""
        self.api = api
        self.spec = spec
        self.gpus = gpus
        self.mark = f"t{next(_numbers)}-{folder.name}"
        self.folder = folder

    @contextmanager
    def service(
        self, tag: str, size: int, cpu: str = "", secret: str = "", **annotations: str
    ) -> Iterator[Service]:
        """Asleep. `cpu`: that it requests; `secret`: its keys are variables."""
        model = self.folder / tag
        model.write_text(f"model of {tag}")
        made = template(
            {"initial-scale": "0", "target-burst-capacity": "-1", "window": "60s", **annotations}, **self.spec
        )
        made["metadata"]["annotations"] |= {
            "kserve-galaxy.io/engine": "galaxy",
            "kserve-galaxy.io/standby": str(size),
        }
        container = made["spec"]["containers"][0]
        container |= {
            "command": ["python", "-m", RUNTIME],
            "args": ["--port=8080", f"--model={model}"],
            # What an import might read makes another pool, so that tests don't share theirs.
            "env": [{"name": "HF_HOME", "value": f"/{self.mark}"}],
        }
        if self.gpus:
            container["resources"] = {"limits": {GPU: str(self.gpus)}}
        if cpu:
            container["resources"] = {"requests": {"cpu": cpu}}
        if secret:
            container["envFrom"] = [{"secretRef": {"name": secret}}]
        with deployed(self.api, tag, made) as service:
            yield service

    def pods(self) -> list[Object]:
        """Of all pools; adopted ones too."""
        found = self.api.list("v1", "Pod", NAMESPACE, names.POOL_LABEL)
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp") and self.has(pod)]

    def has(self, pod: Object) -> bool:
        env = pod["spec"]["containers"][0].get("env") or []
        return any(entry.get("value") == f"/{self.mark}" for entry in env)

    def idle(self) -> list[Object]:
        return [
            pod
            for pod in self.pods()
            if UID not in pod["metadata"]["labels"] and condition(pod, "Ready") == "True"
        ]

    def wait_filled(self, size: int) -> None:
        wait_until(
            f"{size} standby pods",
            lambda: len(self.idle()) == size,
            FILL_S,
            detail=lambda: str([_said(pod) for pod in self.pods()]),
        )


def _said(pod: Object) -> str:
    return f"{pod['metadata']['name']} {pod['status'].get('phase')} Ready={condition(pod, 'Ready')}"


def adopted(service: Service) -> list[Object]:
    return [pod for pod in service.pods() if names.POOL_LABEL in pod["metadata"]["labels"]]


def wait_agreed(service: Service, count: int, seconds: float = 60) -> list[Object]:
    """Everybody has so many pods, all of them ready."""
    api, revision = service.api, service.revision
    seen: dict[str, Any] = {}

    def agreed() -> bool:
        deployment = api.get("apps/v1", "Deployment", NAMESPACE, f"{revision}-deployment")
        sets = api.list("apps/v1", "ReplicaSet", NAMESPACE, f"serving.knative.dev/revision={revision}")
        endpoints = api.get("v1", "Endpoints", NAMESPACE, f"{revision}-private")
        pods = service.pods(revision)
        ready = [pod for pod in pods if condition(pod, "Ready") == "True"]
        addresses = [
            a["ip"] for subset in endpoints.get("subsets") or [] for a in subset.get("addresses") or []
        ]
        autoscaler = service.autoscaler()["status"]
        seen.update(
            pods=[_said(pod) for pod in pods],
            deployment=(deployment["spec"]["replicas"], deployment["status"].get("readyReplicas", 0)),
            replica_sets=sorted((s["spec"]["replicas"], s["status"].get("readyReplicas", 0)) for s in sets),
            endpoints=sorted(set(addresses)),
            autoscaler=(autoscaler.get("desiredScale"), autoscaler.get("actualScale")),
        )
        owned = all(
            any(o.get("controller") for o in pod["metadata"].get("ownerReferences", [])) for pod in pods
        )
        return (
            len(pods) == len(ready) == count
            and owned
            and seen["deployment"] == (count, count)
            and sum(n for n, _ in seen["replica_sets"]) == sum(n for _, n in seen["replica_sets"]) == count
            and seen["endpoints"] == sorted(pod["status"]["podIP"] for pod in pods)
            and seen["autoscaler"][1] == count
            and condition(api.get("serving.knative.dev/v1", "Service", NAMESPACE, service.name), "Ready")
            == "True"
        )

    wait_until(f"{service.name}: all agree on {count}", agreed, seconds, detail=lambda: str(seen))
    return service.pods(revision)


def facts(answer: Answer) -> Any:
    assert answer.status == 200, answer
    return json.loads(answer.body)
