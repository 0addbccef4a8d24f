"""Standby pods hold the GPUs of the nodes, and a real scheduler finds no place for who comes: the idle give way.

The GPUs are numbers in a Node's status, as a device plugin puts them there: what is seen is who gets a node, when.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.follower import Follower
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.parts import start_anew
from e2e.behaviours.services import NAMESPACE, SERVING, Service, deployed, template
from e2e.behaviours.standby import (
    AGENT,
    GPU,
    UID,
    Pool,
    adopted,
    agents_heard,
    facts,
    wait_agreed,
)
from e2e.behaviours.two_nodes import ELSEWHERE, SECOND, marked, node_of, on_the_first
from e2e.stack.api import Api, ApiError, Object, condition, wait_until
from e2e.stack.cluster import Cluster, devices
from e2e.stack.kubelet import programs
from e2e.stack.place import NODE_NAME, SYSTEM_NAMESPACE, Place
from kserve_ext.api.standby import names

#: Of the autoscaler's constants, so that a test need not wait for ten minutes.
MOST, PATIENCE_S = 2, 60
IMPATIENT = f"""
from kserve_ext.core.standby import giving_way
giving_way.MOST, giving_way.PATIENCE_S = {MOST}, {PATIENCE_S}.0
import runpy
runpy.run_module("autoscaler_shim.knative", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def installed(stack: Cluster) -> Iterator[Api]:
    """The parts of the system are all on the first node."""
    with on_the_first(stack) as api:
        yield api


@pytest.fixture
def impatient(stack: Cluster, installed: Api) -> Iterator[Api]:
    """The autoscaler, with other constants."""
    programs.give(stack.place, {"galaxy-autoscaler": [sys.executable, "-c", IMPATIENT]})
    start_anew(installed, "autoscaler")
    try:
        yield installed
    finally:
        programs.give(stack.place, {"galaxy-autoscaler": [sys.executable, "-m", "autoscaler_shim.knative"]})
        start_anew(installed, "autoscaler")


@pytest.fixture
def client(ingress: Ingress, installed: Api) -> Client:
    return Client(ingress)


@pytest.fixture
def pool(installed: Api, tmp_path: Path) -> Pool:
    return Pool(installed, tmp_path, gpus=1)


@contextmanager
def asking(api: Api, tag: str, gpus: int, ready: bool = False, scale: int = 1) -> Iterator[Service]:
    """A service of another image than the pools', none of whose pods it can have."""
    made = template({"min-scale": str(scale)})
    made["spec"]["containers"][0]["resources"] = {"limits": {GPU: str(gpus)}}
    with deployed(api, tag, made, ready) as service:
        yield service


class Story(Follower):
    """What became of the pool's pods and of plain ones, in order: (what, name)."""

    def __init__(self, place: Place, pool: Pool) -> None:
        self._pool = pool
        super().__init__(place, {f"/api/v1/namespaces/{NAMESPACE}/pods": self._changed})
        self.told: list[tuple[str, str]] = []
        self.nodes: dict[str, str] = {}
        self.words: dict[str, str] = {}

    def of(self, *what: str) -> list[str]:
        return [name for said, name in self.told if said in what]

    def _changed(self, change: str, pod: Object) -> None:
        name = pod["metadata"]["name"]
        labels = pod["metadata"].get("labels") or {}
        kind = "plain" if UID in labels else "standby"
        if names.POOL_LABEL in labels and not self._pool.has(pod):
            return
        said: Object = next(
            (c for c in pod["status"].get("conditions") or () if c["type"] == "PodScheduled"), {}
        )
        found = [f"{kind} made"]
        if said.get("status") == "False":
            self.words[name] = said.get("message", "")
            found.append(f"{kind} has no node")
        if node_of(pod):
            self.nodes[name] = node_of(pod)
            found.append(f"{kind} has a node")
        if condition(pod, "Ready") == "True":
            found.append(f"{kind} ready")
        if pod["metadata"].get("deletionTimestamp") or change == "GONE":
            found.append(f"{kind} deleted")
        if change == "GONE":
            found.append(f"{kind} gone")
        self.told += [(what, name) for what in found if (what, name) not in self.told]


def waiting_pod(service: Service, said: str = f"Insufficient {GPU}") -> Object:
    """The one pod, which the scheduler has found no node for."""

    def found() -> Object | None:
        pods = service.pods()
        if len(pods) != 1 or condition(pods[0], "PodScheduled") != "False":
            return None
        (words,) = (c["message"] for c in pods[0]["status"]["conditions"] if c["type"] == "PodScheduled")
        return pods[0] if said in words else None

    pod = wait_until(f"a pod of {service.name} without a node", found, 60)
    assert pod is not None
    return pod


def test_the_idle_pod_goes_and_is_made_again_only_when_there_is_room(
    stack: Cluster, installed: Api, client: Client, pool: Pool
) -> None:
    with ExitStack() as open_:
        open_.enter_context(devices(installed, NODE_NAME, GPU, 2))
        open_.enter_context(pool.service("holds", 2))
        pool.wait_filled(2)
        before = {pod["metadata"]["name"] for pod in pool.pods()}
        story = open_.enter_context(Story(stack.place, pool))
        with asking(installed, "asks", 1) as asks:
            waiting_pod(asks)
            asks.wait_ready()
            (pod,) = asks.ready_pods()
            name = pod["metadata"]["name"]
            assert client.send(asks).status == 200
            placed = next(c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled")
            print(f"a node at {placed['lastTransitionTime']}, made at {pod['metadata']['creationTimestamp']}")
            assert f"Insufficient {GPU}" in story.words[name]
            (gone,) = story.of("standby deleted")
            assert story.told.index(("standby deleted", gone)) < story.told.index(("plain has a node", name))
            wait_until("the pool's next to wait for room", lambda: story.of("standby has no node"), 30)
            (more,) = set(story.of("standby made")) - before
            assert story.of("standby has no node") == [more]
            assert story.told.index(("plain has a node", name)) < story.told.index(("standby made", more))
        pool.wait_filled(2)


def test_several_that_wait_get_what_they_need_and_no_more(stack: Cluster, installed: Api, pool: Pool) -> None:
    with ExitStack() as open_:
        open_.enter_context(devices(installed, NODE_NAME, GPU, 5))
        open_.enter_context(pool.service("holds", 5))
        pool.wait_filled(5)
        story = open_.enter_context(Story(stack.place, pool))
        began = time.monotonic()
        with asking(installed, "four", 1, scale=4) as asks:
            asks.wait_pods(lambda count: count == 4, "four pods")
            print(f"four pods after {time.monotonic() - began:.0f} s")
            assert len(story.of("standby deleted")) == 4


def test_gpus_of_one_node_come_together(stack: Cluster, installed: Api, client: Client, pool: Pool) -> None:
    """Four idle pods on two nodes; who asks for two GPUs costs two, of one node."""
    with ExitStack() as open_:
        for node in (NODE_NAME, SECOND):
            open_.enter_context(devices(installed, node, GPU, 2))
        open_.enter_context(pool.service("holds", 4))
        pool.wait_filled(4)
        story = open_.enter_context(Story(stack.place, pool))
        with asking(installed, "pair", 2) as asks:
            waiting_pod(asks)
            asks.wait_ready()
            (pod,) = asks.ready_pods()
            assert client.send(asks).status == 200
            assert [story.nodes[name] for name in story.of("standby deleted")] == [node_of(pod)] * 2


def test_who_can_never_fit_costs_a_few_idle_pods_and_counts_no_more_after_a_while(
    stack: Cluster, impatient: Api, pool: Pool
) -> None:
    """As somebody else has the others; and none, where it asks for more GPUs than the node has."""
    with ExitStack() as open_:
        open_.enter_context(devices(impatient, NODE_NAME, GPU, 6))
        open_.enter_context(asking(impatient, "has", 3, ready=True))
        open_.enter_context(pool.service("holds", 3))
        pool.wait_filled(3)
        story = open_.enter_context(Story(stack.place, pool))
        with asking(impatient, "huge", 8) as more, asking(impatient, "four", 4) as asks:
            waits = [waiting_pod(one)["metadata"]["name"] for one in (asks, more)]
            wait_until("idle pods to go", lambda: len(story.of("standby gone")) == MOST, 90)
            assert len(pool.pods()) == 3 - MOST
            wait_until("the pool to be filled", lambda: len(pool.idle()) == 3, PATIENCE_S + 60)
            assert len(story.of("standby deleted")) == MOST
            assert [waiting_pod(one)["metadata"]["name"] for one in (asks, more)] == waits


def test_an_adopted_pod_stays_and_is_no_idle_one_before_who_waits(
    stack: Cluster, installed: Api, client: Client, pool: Pool
) -> None:
    with ExitStack() as open_:
        open_.enter_context(devices(installed, NODE_NAME, GPU, 2))
        serves = open_.enter_context(pool.service("serves", 2, window="6s"))
        pool.wait_filled(2)
        facts(client.send(serves))
        (pod,) = wait_agreed(serves, 1)
        assert adopted(serves)
        story = open_.enter_context(Story(stack.place, pool))
        with client.load(serves, 1, pause_s=0.2) as load:
            open_.enter_context(asking(installed, "first", 1, ready=True))
            second = open_.enter_context(asking(installed, "second", 1))
            waits = waiting_pod(second)["metadata"]["name"]

            def before_the_pool() -> bool:
                said = serves.autoscaler()["status"].get("conditions") or []
                return any(waits in str(c.get("message")) for c in said if c["type"] == "StandbyReady")

            wait_until("idle pods to be given up", before_the_pool, 60)
            load.wait_good(10)
            assert [p["metadata"]["uid"] for p in wait_agreed(serves, 1)] == [pod["metadata"]["uid"]]
            assert pool.idle() == []
        assert load.failures == []
        second.wait_ready()
        name = pod["metadata"]["name"]
        assert name in story.of("plain gone")
        assert name not in story.of("standby made")


@contextmanager
def allowed(api: Api, **spec: Any) -> Iterator[None]:
    """Knative takes these fields of pods only where its features say so; returns when its webhook has heard."""
    features = {f"kubernetes.podspec-{field.lower()}": "enabled" for field in spec}
    tried: Object = {"apiVersion": SERVING, "kind": "Service", "spec": {"template": template(**spec)}}
    tried["metadata"] = {"name": "tried", "namespace": NAMESPACE}
    path = f"{api.path(SERVING, 'Service', NAMESPACE)}?dryRun=All"
    where = "v1", "ConfigMap", SYSTEM_NAMESPACE, "config-features"
    api.patch(*where, {"data": features})
    try:
        wait_until("the webhook to allow it", lambda: bool(api.call("POST", path, tried)), 30)
        yield
    finally:
        api.patch(*where, {"data": dict.fromkeys(features)})


def test_a_pool_is_on_nodes_that_its_revisions_tolerate(
    installed: Api, client: Client, tmp_path: Path
) -> None:
    """The one with GPUs is for who asks for it."""
    taints = [{"key": GPU, "value": "present", "effect": "NoSchedule"}]
    spec: Object = {
        "tolerations": [{"key": GPU, "operator": "Exists"}],
        "nodeSelector": {"kubernetes.io/hostname": SECOND},
    }
    with ExitStack() as open_:
        open_.enter_context(allowed(installed, **spec))
        open_.enter_context(marked(installed, SECOND, taints=taints))
        for node in (NODE_NAME, SECOND):
            open_.enter_context(devices(installed, node, GPU, 1))
        pool = Pool(installed, tmp_path, gpus=1, **spec)
        service = open_.enter_context(pool.service("there", 1))
        pool.wait_filled(1)
        assert [node_of(pod) for pod in pool.idle()] == [SECOND]
        facts(client.send(service))
        (pod,) = wait_agreed(service, 1)
        assert adopted(service)
        assert node_of(pod) == SECOND


def test_a_pool_evicts_nobody(installed: Api, client: Client, tmp_path: Path) -> None:
    """Its revision's PriorityClass would let it; one that doesn't preempt is as good for who serves."""
    kind = "scheduling.k8s.io/v1", "PriorityClass"
    classes: dict[str, Object] = {"test-preempts": {}, "test-calm": {"preemptionPolicy": "Never"}}
    with ExitStack() as open_:
        for name, policy in classes.items():
            made: Object = {"apiVersion": kind[0], "kind": kind[1], "metadata": {"name": name}}
            installed.apply({**made, "value": 1000, **policy})
            open_.callback(installed.delete, *kind, "", name)
        open_.enter_context(allowed(installed, priorityClassName="test-calm"))
        open_.enter_context(devices(installed, NODE_NAME, GPU, 2))
        serves = open_.enter_context(asking(installed, "serves", 2, ready=True))
        pods = serves.ready_pods()
        pool = Pool(installed, tmp_path, gpus=1, priorityClassName="test-preempts")
        with pool.service("preempts", 1) as service:

            def said() -> str:
                found = service.autoscaler()["status"].get("conditions") or []
                return next((str(c.get("reason")) for c in found if c["type"] == "StandbyReady"), "")

            wait_until("the pool to say so", lambda: said() == "WouldEvict", 60, detail=said)
            assert pool.pods() == []
        quiet = Pool(installed, tmp_path, gpus=1, priorityClassName="test-calm")
        with quiet.service("calm", 1):
            wait_until(
                "its pod to wait",
                lambda: [condition(pod, "PodScheduled") for pod in quiet.pods()] == ["False"],
                60,
            )
        assert [pod["metadata"]["uid"] for pod in serves.ready_pods()] == [pods[0]["metadata"]["uid"]]
        assert client.send(serves).status == 200


def agents(api: Api, node: str) -> list[Object]:
    found = api.list("v1", "Pod", SYSTEM_NAMESPACE, f"app={AGENT}")
    return [pod for pod in found if node_of(pod) == node and not pod["metadata"].get("deletionTimestamp")]


def wait_agent(api: Api, node: str) -> None:
    wait_until(
        f"an agent on {node}", lambda: any(condition(p, "Ready") == "True" for p in agents(api, node)), 60
    )
    wait_until("its word", lambda: agents_heard(api) == 2, 60)


def test_a_node_that_is_full_has_a_place_for_its_agent(stack: Cluster, installed: Api) -> None:
    """It comes last, and to a node for GPUs: the scheduler evicts a pod of no class for it."""
    filler = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": "filler"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": SECOND},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "filler",
                    "image": "e2e.local/filler:1",
                    "command": ["sleep", "1000"],
                    "resources": {"requests": {"cpu": "64"}},
                }
            ],
        },
    }
    with ExitStack() as open_:
        with marked(installed, SECOND, taints=ELSEWHERE):
            for pod in agents(installed, SECOND):
                installed.delete("v1", "Pod", SYSTEM_NAMESPACE, pod["metadata"]["name"])
            wait_until("no agent there", lambda: not agents(installed, SECOND), 30)
            installed.create(filler)
            open_.callback(installed.delete, "v1", "Pod", NAMESPACE, "filler", 0)
            wait_until(
                "the node to be full",
                lambda: condition(installed.get("v1", "Pod", NAMESPACE, "filler"), "Ready") == "True",
                60,
            )
        gpus = [{"key": GPU, "value": "present", "effect": "NoSchedule"}]
        with marked(installed, SECOND, taints=gpus):
            wait_agent(installed, SECOND)
            (pod,) = agents(installed, SECOND)
            assert pod["spec"]["priority"] == 1_000_000_000
            wait_until("the filler to go", lambda: _gone(installed, "filler"), 30)
    wait_agent(installed, SECOND)


def _gone(api: Api, name: str) -> bool:
    try:
        return bool(api.get("v1", "Pod", NAMESPACE, name)["metadata"].get("deletionTimestamp"))
    except ApiError as error:
        return error.status == 404
