"""Standby pods on two nodes: one is cordoned, drained, against a budget, too, or dead, and requests don't notice."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.follower import Follower
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.services import NAMESPACE, Service
from e2e.behaviours.standby import UID, Pool, adopted, agents_heard, facts, wait_agreed
from e2e.behaviours.two_nodes import ELSEWHERE, SECOND, marked, node_of, on_the_first
from e2e.stack import network
from e2e.stack.api import Api, ApiError, Object, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.place import NODE_NAME, SYSTEM_NAMESPACE, Place, pod_number
from kserve_ext.api.standby import names

BUDGETS = "policy/v1", "PodDisruptionBudget"
DRAIN_S = 120.0


@pytest.fixture(scope="module")
def installed(stack: Cluster) -> Iterator[Api]:
    """The parts of the system are all on the first, which is neither drained nor dead."""
    with on_the_first(stack) as api:
        yield api


@pytest.fixture
def client(ingress: Ingress, installed: Api) -> Client:
    return Client(ingress)


@pytest.fixture
def pool(installed: Api, tmp_path: Path) -> Pool:
    return Pool(installed, tmp_path)


@contextmanager
def budget(api: Api, service: Service, least: int) -> Iterator[None]:
    """A user's: of the service's pods so many are to be there."""
    meta = {"name": service.name, "namespace": NAMESPACE}
    selector = {"matchLabels": {"serving.knative.dev/service": service.name}}
    spec = {"minAvailable": least, "selector": selector}
    api.create({"apiVersion": BUDGETS[0], "kind": BUDGETS[1], "metadata": meta, "spec": spec})
    try:
        yield
    finally:
        api.delete(*BUDGETS, NAMESPACE, service.name)


def wait_budget(api: Api, service: Service, **status: int) -> None:
    """The disruption controller counts so."""
    seen: dict[str, object] = {}

    def counted() -> bool:
        found = api.get(*BUDGETS, NAMESPACE, service.name)
        seen.update(found.get("status") or {})
        present = seen.get("observedGeneration") == found["metadata"]["generation"]
        return present and status.items() <= seen.items()

    wait_until(f"the budget of {service.name}: {status}", counted, 30, detail=lambda: str(seen))


def evict(api: Api, pod: Object) -> str:
    """As `kubectl drain` does; why a budget refuses it, "" = it goes, or has gone."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    try:
        api.call("POST", f"{api.path('v1', 'Pod', NAMESPACE, name)}/eviction", eviction)
    except ApiError as error:
        if error.status == 429:
            return str(error)
        if error.status != 404:
            raise
    return ""


def drain(api: Api, node: str) -> list[str]:
    """As `kubectl drain` does once the node is cordoned; the pods that a budget has held back at first."""
    held: list[str] = []
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end:
        pods = [pod for pod in api.list("v1", "Pod", NAMESPACE) if node_of(pod) == node]
        if not pods:
            return held
        for pod in pods:
            if not pod["metadata"].get("deletionTimestamp") and evict(api, pod):
                held.append(pod["metadata"]["name"])
        time.sleep(0.3)
    raise TimeoutError(f"node {node} is not drained after {DRAIN_S:.0f} s")


class GivenOut(Follower):
    """Standby pods of a node that become a revision's, beside those that are one's."""

    def __init__(self, place: Place, node: str, before: list[Object]) -> None:
        super().__init__(place, {f"/api/v1/namespaces/{NAMESPACE}/pods": self._changed})
        self._node = node
        self._before = {pod["metadata"]["uid"] for pod in before}
        self.names: set[str] = set()

    def _changed(self, change: str, obj: Object) -> None:
        metadata, labels = obj["metadata"], obj["metadata"].get("labels") or {}
        given = UID in labels and names.POOL_LABEL in labels and metadata["uid"] not in self._before
        if given and node_of(obj) == self._node:
            self.names.add(metadata["name"])


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


def test_a_budget_that_allows_none_holds_up_the_drain_of_adopted_pods_and_of_nothing_else(
    stack: Cluster, installed: Api, client: Client, pool: Pool
) -> None:
    """Until it is loosened: everything is on one node, and all of it goes, one pod after the other."""
    with ExitStack() as open_:
        with marked(installed, NODE_NAME, taints=ELSEWHERE):
            bounds = {"target": "1", "max-scale": "2"}
            service = open_.enter_context(pool.service("kept", 2, **bounds))
            open_.enter_context(budget(installed, service, 2))
            other = open_.enter_context(pool.service("other", 2))
            pool.wait_filled(2)
            load = open_.enter_context(client.load(service, 3, "/sleep?s=0.3"))
            wait_agreed(service, 2, 90)
            pool.wait_filled(2)
        mine, idle = adopted(service), pool.idle()
        assert [node_of(pod) for pod in (*mine, *idle)] == [SECOND] * 4
        none_goes = {"expectedPods": 2, "currentHealthy": 2, "desiredHealthy": 2, "disruptionsAllowed": 0}
        wait_budget(installed, service, **none_goes)
        given = open_.enter_context(GivenOut(stack.place, SECOND, mine))
        with marked(installed, SECOND, unschedulable=True):
            assert all("would violate" in evict(installed, pod) for pod in mine)
            wait_until("others elsewhere", lambda: any(node_of(pod) != SECOND for pod in pool.pods()), 60)
            facts(client.send(other))  # while slots of the node may be there yet
            (pod,) = wait_agreed(other, 1)
            assert node_of(pod) == NODE_NAME

            wait_until(
                "no slot of the node to be left",
                lambda: _names(pod for pod in pool.pods() if node_of(pod) == SECOND) == _names(mine),
                60,
            )
            pool.wait_filled(2)
            load.wait_good(50)
            assert all("would violate" in evict(installed, pod) for pod in mine)
            assert _names(wait_agreed(service, 2)) == _names(mine)
            wait_budget(installed, service, **none_goes)
            assert load.failures == []

            installed.patch(*BUDGETS, NAMESPACE, service.name, {"spec": {"minAvailable": 1}})
            wait_budget(installed, service, disruptionsAllowed=1)
            drain(installed, SECOND)
            pods = wait_agreed(service, 2, 120)
            assert [node_of(pod) for pod in pods] == [NODE_NAME] * 2
            pool.wait_filled(2)
            load.wait_good(50)
        open_.close()
        assert load.failures == []
        assert given.names == set()


def _names(pods: Iterable[Object]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def test_a_budget_holds_back_no_scale_down(installed: Api, client: Client, pool: Pool) -> None:
    """Whether the pod is deleted, or goes back to a pool that can't be filled otherwise."""
    with pool.service("down", 1, window="6s") as service, budget(installed, service, 1):
        pool.wait_filled(1)
        facts(client.send(service))
        (gone,) = wait_agreed(service, 1)
        wait_budget(installed, service, currentHealthy=1, disruptionsAllowed=0)
        service.wait_zero()
        wait_agreed(service, 0)
        pool.wait_filled(1)
        with (
            marked(installed, NODE_NAME, taints=ELSEWHERE),
            marked(installed, SECOND, taints=ELSEWHERE),
        ):
            facts(client.send(service))
            (back,) = wait_agreed(service, 1)
            wait_budget(installed, service, currentHealthy=1, disruptionsAllowed=0)
            service.wait_zero()
            wait_agreed(service, 0)
            pool.wait_filled(1)
            assert _names(pool.idle()) == _names([back])
        assert back["metadata"]["name"] != gone["metadata"]["name"]


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
    with ExitStack() as open_:
        with marked(installed, NODE_NAME, taints=ELSEWHERE):
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
