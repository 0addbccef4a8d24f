"""Standby pods on two nodes: one is cordoned, drained under load, or dead, and requests don't notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.services import NAMESPACE, Service
from e2e.behaviours.standby import Pool, adopted, agents_heard, facts, installing, wait_agreed
from e2e.stack import network
from e2e.stack.api import Api, ApiError, Object, wait_until
from e2e.stack.cluster import Cluster, another_node
from e2e.stack.place import NODE_NAME, SYSTEM_NAMESPACE, pod_number

SECOND = "node-2"
DRAIN_S = 120.0


@pytest.fixture(scope="module")
def installed(stack: Cluster) -> Iterator[Api]:
    """The parts of the system are all on the first, which is neither drained nor dead."""
    with another_node(stack, SECOND):
        stack.api.patch("v1", "Node", "", SECOND, {"spec": {"unschedulable": True}})
        with installing(stack, nodes=2) as api:
            api.patch("v1", "Node", "", SECOND, {"spec": {"unschedulable": None}})
            yield api
            api.patch("v1", "Node", "", SECOND, {"spec": {"unschedulable": True}})


@pytest.fixture
def client(ingress: Ingress, installed: Api) -> Client:
    return Client(ingress)


@pytest.fixture
def pool(installed: Api, tmp_path: Path) -> Pool:
    return Pool(installed, tmp_path)


def node_of(pod: Object) -> str:
    return str(pod["spec"].get("nodeName", ""))


@contextmanager
def marked(api: Api, node: str, **spec: object) -> Iterator[None]:
    """Its spec, and as it was in the end."""
    api.patch("v1", "Node", "", node, {"spec": spec})
    try:
        yield
    finally:
        api.patch("v1", "Node", "", node, {"spec": dict.fromkeys(spec)})


@contextmanager
def budget(api: Api, service: Service, least: int) -> Iterator[None]:
    """A user's: of the service's pods so many are to be there."""
    meta = {"name": service.name, "namespace": NAMESPACE}
    selector = {"matchLabels": {"serving.knative.dev/service": service.name}}
    spec = {"minAvailable": least, "selector": selector}
    api.create({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": spec})
    try:
        yield
    finally:
        api.delete("policy/v1", "PodDisruptionBudget", NAMESPACE, service.name)


def drain(api: Api, node: str) -> list[str]:
    """As `kubectl drain` does once the node is cordoned; the pods that a budget has held back at first."""
    held: list[str] = []
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end:
        pods = [pod for pod in api.list("v1", "Pod", NAMESPACE) if node_of(pod) == node]
        if not pods:
            return held
        for pod in pods:
            name = pod["metadata"]["name"]
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            if pod["metadata"].get("deletionTimestamp"):
                continue
            try:
                path = f"{api.path('v1', 'Pod', NAMESPACE, name)}/eviction"
                api.call("POST", path, eviction)
            except ApiError as error:
                if error.status not in (404, 429):
                    raise
                if error.status == 429:
                    held.append(name)
        time.sleep(0.3)
    raise TimeoutError(f"node {node} is not drained after {DRAIN_S:.0f} s")


def test_a_node_is_drained_under_load(installed: Api, client: Client, pool: Pool) -> None:
    """Of slots and of adopted pods, with a budget that lets one go at a time."""
    with (
        pool.service("drain", 2, **{"target": "1", "max-scale": "2"}) as service,
        budget(installed, service, 1),
    ):
        pool.wait_filled(2)
        with client.load(service, 3, pause_s=0.02) as load:
            wait_agreed(service, 2, 90)
            pool.wait_filled(2)
            node = node_of(adopted(service)[0])
            with marked(installed, node, unschedulable=True):
                print(f"{node} held back for a while: {drain(installed, node)}")
                pods = wait_agreed(service, 2, 120)
                assert [name for name in map(node_of, pods) if name == node] == []
                pool.wait_filled(2)
                assert [name for name in map(node_of, pool.pods()) if name == node] == []
                load.wait_good(20)
            load.wait_good(20)
        assert load.failures == []


def test_slots_of_a_cordoned_node_are_not_given_out(installed: Api, client: Client, pool: Pool) -> None:
    with pool.service("cordon", 2) as service:
        pool.wait_filled(2)
        node = node_of(pool.idle()[0])
        with marked(installed, node, unschedulable=True):
            wait_until(
                "two slots elsewhere",
                lambda: [node_of(pod) == node for pod in pool.pods()] == [False, False],
                90,
                detail=lambda: str([(p["metadata"]["name"], node_of(p)) for p in pool.pods()]),
            )
            pool.wait_filled(2)
            facts(client.send(service))
            (pod,) = wait_agreed(service, 1)
            assert node_of(pod) != node
            assert adopted(service)


def test_a_dead_node_holds_up_nobody(stack: Cluster, installed: Api, client: Client, pool: Pool) -> None:
    """Its slots are the only ones, and nobody has noticed yet."""
    elsewhere = [{"key": "test", "value": "elsewhere", "effect": "NoSchedule"}]
    with ExitStack() as open_:
        with marked(installed, NODE_NAME, taints=elsewhere):
            service = open_.enter_context(pool.service("dead", 1))
            pool.wait_filled(1)
        assert [node_of(pod) for pod in pool.idle()] == [SECOND]
        with unplugged(stack, installed, SECOND):
            began = time.monotonic()
            assert facts(client.send(service))["model"] == "model of dead"
            print(f"answered after {time.monotonic() - began:.1f} s")
            wait_until("its agent to be missed", lambda: agents_heard(installed) == 1, 60)
            wait_agreed(service, 1, 90)
        wait_until("its agent to be heard again", lambda: agents_heard(installed) == 2, 60)
        wait_agreed(service, 1, 90)


@contextmanager
def unplugged(stack: Cluster, api: Api, node: str) -> Iterator[None]:
    """No packet comes from its pods or gets there."""
    links = []
    for namespace in (NAMESPACE, SYSTEM_NAMESPACE):
        for pod in api.list("v1", "Pod", namespace):
            if node_of(pod) == node and (address := pod["status"].get("podIP")):
                links.append((address, f"p{pod_number(address)}"))
    for _, link in links:
        network.ip("-n", stack.place.node, "link", "set", link, "down")
    try:
        yield
    finally:
        for address, link in links:
            with suppress(network.NetworkError):  # the pod may have gone
                network.plug_in(stack.place, link, address)
