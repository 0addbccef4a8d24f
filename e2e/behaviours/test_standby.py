"""Standby pods in a real cluster: pools fill, one serves a request at zero and is then a pod like any other.

Deployment, ReplicaSet, Endpoints, PodAutoscaler and Knative Service have to agree afterwards, whatever was killed in
between. The runtime is bench/peers/tiny_runtime: its zygote forks a server that loads a file and answers from it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.follower import Follower
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.parts import kill, processes, start_anew, system_pods
from e2e.behaviours.services import NAMESPACE, Service
from e2e.behaviours.standby import (
    AGENT,
    UID,
    Pool,
    adopted,
    facts,
    figures,
    installing,
    wait_agreed,
    wait_can_hold,
)
from e2e.stack.api import Api, Object, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.place import NODE_NAME, SYSTEM_NAMESPACE, Place
from kserve_ext.api.standby import names


@pytest.fixture(scope="module")
def installed(stack: Cluster) -> Iterator[Api]:
    with installing(stack) as api:
        yield api


@pytest.fixture
def client(ingress: Ingress, installed: Api) -> Client:
    return Client(ingress)


@pytest.fixture
def pool(installed: Api, tmp_path: Path) -> Pool:
    return Pool(installed, tmp_path)


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


class MadeBesides(Follower):
    """Pods of revisions that aren't standby pods, as they come."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, {f"/api/v1/namespaces/{NAMESPACE}/pods": self._changed})
        self.names: dict[str, set[str]] = {}

    def _changed(self, change: str, obj: Object) -> None:
        labels = obj["metadata"].get("labels") or {}
        if change == "SET" and UID in labels and names.POOL_LABEL not in labels:
            self.names.setdefault(labels["serving.knative.dev/revision"], set()).add(obj["metadata"]["name"])


def test_its_replica_set_makes_no_other_pod_meanwhile(
    stack: Cluster, installed: Api, client: Client, pool: Pool
) -> None:
    """Before replicas rise, and after; and the pod is free to go afterwards."""
    with pool.service("alone", 2, window="6s") as service:
        pool.wait_filled(2)
        wait_can_hold(installed)
        with MadeBesides(stack.place) as besides:
            for _ in range(3):
                facts(client.send(service))
                (pod,) = wait_agreed(service, 1)
                wait_until(
                    "its pod to be like any other",
                    lambda: all(names.ADOPTION not in pod["metadata"]["labels"] for pod in service.pods()),
                    30,
                )
                service.wait_zero()
                wait_agreed(service, 0)
                pool.wait_filled(2)
        assert besides.names.get(service.revision, set()) == set(), pod
        events = installed.list("v1", "Event", NAMESPACE)
        assert [e["message"] for e in events if e["reason"] in ("FailedDelete", "FailedCreate")] == []


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
    stack: Cluster, installed: Api, client: Client, pool: Pool
) -> None:
    """Of three, whichever was how far: who serves by then goes on, and becomes its revision's own."""
    with (
        pool.service("kill", 3) as first,
        pool.service("more", 3) as second,
        pool.service("last", 3) as third,
    ):
        pool.wait_filled(3)
        wait_can_hold(installed)
        before = {pod["metadata"]["name"] for pod in pool.idle()}
        services = (first, second, third)
        with (
            MadeBesides(stack.place) as besides,
            client.load(first, 1, pause_s=0.5) as one,
            client.load(second, 1, pause_s=0.5) as two,
            client.load(third, 1, pause_s=0.5) as three,
        ):
            with ThreadPoolExecutor(3) as threads:
                asking = [threads.submit(client.send, service) for service in services]
                asking[0].result(60)
                for name in system_pods(installed, "autoscaler"):
                    kill(installed, SYSTEM_NAMESPACE, name)
                served = [facts(request.result(90))["pid"] for request in asking]
            pods = [wait_agreed(service, 1, 90)[0]["metadata"]["name"] for service in services]
        assert [load.failures for load in (one, two, three)] == [[], [], []]
        assert set(pods) == before
        assert [besides.names.get(service.revision) for service in services] == [None] * 3
        assert [facts(client.send(service))["pid"] for service in services] == served


class KilledThen(Follower):
    """A context in which these processes are killed as soon as a pod's label says that it is about to be adopted."""

    def __init__(self, place: Place, word: str, pids: list[int]) -> None:
        super().__init__(place, {f"/api/v1/namespaces/{NAMESPACE}/pods": self._changed})
        self._word = word
        self._pids = pids
        self.done = threading.Event()

    def _changed(self, change: str, obj: Object) -> None:
        if self._pids and (obj["metadata"].get("labels") or {}).get(names.ADOPTION) == self._word:
            while self._pids:
                os.kill(self._pids.pop(), signal.SIGKILL)
            self.done.set()


@pytest.mark.parametrize("word", [names.HELD, names.GUARDED])
def test_an_autoscaler_that_is_killed_while_a_pod_changes_hands(
    stack: Cluster, installed: Api, client: Client, pool: Pool, word: str
) -> None:
    """The pod that serves is the one that stays, and no other is made, whatever the next autoscaler knows by then."""
    with pool.service("hands", 1) as service:
        pool.wait_filled(1)
        wait_can_hold(installed)
        before = {pod["metadata"]["name"] for pod in pool.idle()}
        (autoscaler,) = system_pods(installed, "autoscaler")
        pids = processes(installed, SYSTEM_NAMESPACE, autoscaler)
        with (
            MadeBesides(stack.place) as besides,
            KilledThen(stack.place, word, pids) as killed,
            client.load(service, 1, pause_s=0.2) as load,
        ):
            said = facts(client.send(service))
            assert killed.done.wait(30)
            (pod,) = wait_agreed(service, 1)
            wait_until(
                "its pod to be like any other",
                lambda: all(names.ADOPTION not in pod["metadata"]["labels"] for pod in service.pods()),
                30,
            )
            load.wait_good(10)
        assert load.failures == []
        assert pod["metadata"]["name"] in before
        assert facts(client.send(service))["pid"] == said["pid"]
        assert len(wait_agreed(service, 1)) == 1
        assert besides.names.get(service.revision, set()) == set()


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


def test_an_idle_pod_gives_way_to_a_plain_one_that_finds_no_node(
    installed: Api, client: Client, pool: Pool
) -> None:
    node = installed.get("v1", "Node", "", NODE_NAME)
    more_than_half = str(int(node["status"]["allocatable"]["cpu"]) * 3 // 5)
    with pool.service("reserve", 1, cpu=more_than_half):
        pool.wait_filled(1)
        (idle,) = pool.idle()
        with pool.service("plain", 0, cpu=more_than_half) as plain:
            assert facts(client.send(plain))["model"] == "model of plain"
            assert idle["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in pool.pods()}
        pool.wait_filled(1)


def test_a_secret_that_variables_come_from_changes(installed: Api, client: Client, pool: Pool) -> None:
    """Pods that stand by are replaced at once and count as no failures; one that serves keeps what it has, as any."""
    name = f"keys-{pool.mark}".lower().replace("_", "-")[:60].strip("-")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}}

    def value(service: Service) -> object:
        return json.loads(client.send(service, "/env?name=A_KEY").body)

    installed.apply({**secret, "stringData": {"A_KEY": "one"}})
    try:
        with pool.service("serves", 2, secret=name) as serves, pool.service("waits", 2, secret=name) as waits:
            pool.wait_filled(2)
            assert value(serves) == "one"
            (mine,) = wait_agreed(serves, 1)
            pool.wait_filled(2)
            before = {pod["metadata"]["uid"] for pod in pool.idle()}
            installed.apply({**secret, "stringData": {"A_KEY": "two"}})
            wait_until(
                "two others",
                lambda: len(idle := {p["metadata"]["uid"] for p in pool.idle()}) == 2 and not idle & before,
                60,
            )
            assert (value(serves), value(waits)) == ("one", "two")
            assert [pod["metadata"]["uid"] for pod in wait_agreed(serves, 1)] == [mine["metadata"]["uid"]]
            assert len(wait_agreed(waits, 1)) == 1
            digest = mine["metadata"]["labels"][names.POOL_LABEL]
            assert figures(installed, "pool_failures", digest) == [0]
    finally:
        installed.delete("v1", "Secret", NAMESPACE, name)
