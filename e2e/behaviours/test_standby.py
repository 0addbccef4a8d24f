"""Standby pods in a real cluster: pools fill, one serves a request at zero and is then a pod like any other.

Deployment, ReplicaSet, Endpoints, PodAutoscaler and Knative Service have to agree afterwards, whatever was killed in
between. The runtime is bench/peers/tiny_runtime: its zygote forks a server that loads a file and answers from it.
"""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.behaviours.client import Answer, Client
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.parts import kill, start_anew, system_pods
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
FILL_S = 90
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def installed(stack: Cluster) -> Iterator[Api]:
    """Ours with the component, over what Knative shipped; in the end what ran before."""
    api = stack.api
    before = images(api)
    use(api, "stock")
    run(stack, "install", *OPTIONS, "--component", "standby")
    wait_until("the autoscaler to hear the node's agent", lambda: agents_heard(api) == 1, 60)
    try:
        yield api
    finally:
        run(stack, "uninstall")
        if before != images(api):
            grant(api)
            roll_out(api, before)


def agents_heard(api: Api) -> int:
    """Of all autoscalers."""
    heard = 0
    for name in system_pods(api, "autoscaler"):
        address = api.get("v1", "Pod", SYSTEM_NAMESPACE, name)["status"]["podIP"]
        with urllib.request.urlopen(f"http://{address}:9090/metrics", timeout=5) as page:
            for line in page.read().decode().splitlines():
                if line.startswith("galaxy_standby_agents_heard "):
                    heard += int(float(line.split()[1]))
    return heard


@pytest.fixture
def client(ingress: Ingress, installed: Api) -> Client:
    return Client(ingress)


class Pool:
    """Pods of the shape of one test, whose model lies in a file of its own."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.api = api
        self.mark = f"t{next(_numbers)}-{folder.name}"
        self.folder = folder

    @contextmanager
    def service(self, tag: str, size: int, **annotations: str) -> Iterator[Service]:
        """Asleep."""
        model = self.folder / tag
        model.write_text(f"model of {tag}")
        made = template({"initial-scale": "0", "target-burst-capacity": "-1", "window": "60s", **annotations})
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
        with deployed(self.api, tag, made) as service:
            yield service

    def pods(self) -> list[Object]:
        """Of all pools; adopted ones too."""
        found = self.api.list("v1", "Pod", NAMESPACE, names.POOL_LABEL)
        return [
            pod
            for pod in found
            if not pod["metadata"].get("deletionTimestamp")
            and any(
                entry.get("value") == f"/{self.mark}" for entry in pod["spec"]["containers"][0].get("env", [])
            )
        ]

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


@pytest.fixture
def pool(installed: Api, tmp_path: Path) -> Pool:
    return Pool(installed, tmp_path)


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


def test_a_request_at_zero_is_served_by_a_standby_pod_that_is_adopted(client: Client, pool: Pool) -> None:
    with pool.service("one", 2) as service:
        pool.wait_filled(2)
        assert service.pods() == []
        before = {pod["metadata"]["name"] for pod in pool.idle()}
        said = facts(client.send(service))
        assert said["model"] == "model of one"
        (pod,) = wait_agreed(service, 1)
        assert pod["metadata"]["name"] in before
        assert pod["metadata"]["labels"]["serving.knative.dev/revision"] == service.revision
        assert facts(client.send(service))["pid"] == said["pid"]
        pool.wait_filled(2)  # for the next
        assert len(wait_agreed(service, 1)) == 1


def test_down_to_zero_nothing_is_left_but_the_pool(client: Client, pool: Pool) -> None:
    with pool.service("down", 1, window="6s") as service:
        pool.wait_filled(1)
        for _ in range(2):
            facts(client.send(service))
            wait_agreed(service, 1)
            service.wait_zero()
            wait_agreed(service, 0)
            pool.wait_filled(1)
        wait_until("no more pods than the pool has", lambda: len(pool.pods()) == 1, 60)


def test_what_finds_no_standby_pod_starts_the_plain_way(client: Client, pool: Pool) -> None:
    """Two revisions, one slot."""
    with pool.service("first", 1) as first, pool.service("second", 1) as second:
        pool.wait_filled(1)
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(client.send, (first, second)))
        assert [facts(answer)["model"] for answer in answers] == ["model of first", "model of second"]
        for service in (first, second):
            wait_agreed(service, 1)
        assert len([*adopted(first), *adopted(second)]) == 1


def test_an_autoscaler_that_is_killed_in_the_middle_of_adoptions(
    installed: Api, client: Client, pool: Pool
) -> None:
    with (
        pool.service("kill", 3) as first,
        pool.service("more", 3) as second,
        pool.service("last", 3) as third,
    ):
        pool.wait_filled(3)
        services = (first, second, third)
        with ThreadPoolExecutor(3) as threads:
            asking = [threads.submit(client.send, service) for service in services]
            asking[0].result(60)
            for name in system_pods(installed, "autoscaler"):
                kill(installed, SYSTEM_NAMESPACE, name)
            for request in asking:
                facts(request.result(90))
        with (  # so that they are wanted, whatever the new one has yet to hear of them
            client.load(first, 1, pause_s=0.5) as one,
            client.load(second, 1, pause_s=0.5) as two,
            client.load(third, 1, pause_s=0.5) as three,
        ):
            for service in services:
                wait_agreed(service, 1, 90)
        assert [load.failures for load in (one, two, three)] == [[], [], []]


def test_a_rollout_of_the_deployment_at_the_same_time(installed: Api, client: Client, pool: Pool) -> None:
    with pool.service("roll", 1) as service:
        pool.wait_filled(1)
        name = f"{service.revision}-deployment"
        mark = {"spec": {"template": {"metadata": {"annotations": {"a-change": "of somebody"}}}}}
        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(client.send, service)
            installed.patch("apps/v1", "Deployment", NAMESPACE, name, mark)
            facts(asking.result(90))
        wait_agreed(service, 1, 90)
        facts(client.send(service))


def test_an_agent_that_is_killed_while_its_slot_is_taken(installed: Api, client: Client, pool: Pool) -> None:
    with pool.service("agent", 1) as service:
        pool.wait_filled(1)
        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(client.send, service)
            for name in system_pods(installed, AGENT):
                kill(installed, SYSTEM_NAMESPACE, name)
            facts(asking.result(90))
        wait_agreed(service, 1, 90)
        pool.wait_filled(1)


def test_an_adopted_pod_whose_server_dies_is_replaced(installed: Api, client: Client, pool: Pool) -> None:
    with pool.service("dies", 1) as service:
        pool.wait_filled(1)
        facts(client.send(service))
        (pod,) = wait_agreed(service, 1)
        kill(installed, NAMESPACE, pod["metadata"]["name"])
        with client.load(service, 1, pause_s=0.2) as load:
            wait_until(
                "its end",
                lambda: pod["metadata"]["name"] not in {p["metadata"]["name"] for p in service.pods()},
                60,
            )
            load.wait_good(5)
            wait_agreed(service, 1, 90)


def test_the_autoscaler_is_restarted_under_load_and_the_pods_stay(
    installed: Api, client: Client, pool: Pool
) -> None:
    with pool.service("again", 1) as service:
        pool.wait_filled(1)
        facts(client.send(service))
        (pod,) = wait_agreed(service, 1)
        with client.load(service, 2, pause_s=0.1) as load:
            start_anew(installed, "autoscaler")
            load.wait_good(20)
        assert load.failures == []
        assert [p["metadata"]["name"] for p in wait_agreed(service, 1)] == [pod["metadata"]["name"]]


def test_a_pool_that_nobody_asks_for_is_emptied(client: Client, pool: Pool) -> None:
    with pool.service("gone", 2):
        pool.wait_filled(2)
    wait_until("the pool to be empty", lambda: not pool.pods(), 90, detail=lambda: str(pool.pods())[:500])
