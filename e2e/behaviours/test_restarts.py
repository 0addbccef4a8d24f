"""The activator and the autoscaler restarted and killed under load."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.parts import kill, replicas, restart, restarts, system_pods
from e2e.behaviours.services import ASLEEP, NAMESPACE, Service, deployed, template
from e2e.stack import network
from e2e.stack.api import Api, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.place import SYSTEM_NAMESPACE, pod_number

ALWAYS = {"target-burst-capacity": "-1", "min-scale": "1"}


@pytest.mark.parametrize("deployment", ["activator", "autoscaler"])
def test_a_rolling_restart_fails_no_request(api: Api, client: Client, deployment: str) -> None:
    with deployed(api, "restart", template(ALWAYS)) as service:
        with client.load(service, 8, "/?sleep=50", body=b"x" * 2000) as load:
            load.wait_good(50)
            restart(api, deployment)
            load.wait_good(100)
        assert not load.failures


def test_requests_that_an_activator_holds_when_it_is_to_end_are_answered(api: Api, client: Client) -> None:
    slow = template(ASLEEP, env={"OPEN_AFTER_MS": "15000"})
    with deployed(api, "held", slow) as service, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.send_many, service, 10)
        wait_until("a pod on its way", service.pods, 30)
        restart(api, "activator")
        assert service.ready_pods() == []
        assert [answer.status for answer in sent.result(60)] == [200] * 10


def test_the_autoscaler_scales_from_zero_after_a_restart(api: Api, client: Client) -> None:
    with deployed(api, "after", template(ASLEEP)) as service:
        restart(api, "autoscaler")
        assert client.send(service).status == 200
        service.wait_zero()


def test_the_autoscaler_killed_comes_back_and_scales(api: Api, client: Client) -> None:
    with deployed(api, "killed", template({"target": "1", "min-scale": "1"})) as service:
        with client.load(service, 3, "/?sleep=100") as load:
            load.wait_good(10)
            for pod in system_pods(api, "autoscaler"):
                kill(api, SYSTEM_NAMESPACE, pod)
            service.wait_pods(lambda n: n >= 3, "three pods or more")
        assert not load.failures


def test_an_activator_killed_beside_another_fails_only_what_it_had(api: Api, client: Client) -> None:
    clients = 8
    with replicas(api, "activator", 2), deployed(api, "killed", template(ALWAYS)) as service:
        wait_until(
            "two activators", lambda: len(client.ingress.endpoints(NAMESPACE, service.revision)) == 2, 60
        )
        with client.load(service, clients, "/?sleep=50") as load:
            load.wait_good(50)
            victim = system_pods(api, "activator")[0]
            kill(api, SYSTEM_NAMESPACE, victim)
            wait_until("its restart", lambda: restarts(api, SYSTEM_NAMESPACE, victim) > 0, 60)
            wait_until("its readiness", lambda: victim in system_pods(api, "activator"), 60)
            before = len(load.failures)
            load.wait_good(100)
        # Where nobody listens any more an ingress tries another endpoint; what had been sent is lost.
        lost = [failure for failure in load.failures[:before] if "ClientConnectorError" not in failure]
        assert len(lost) <= clients, load.failures
        assert load.failures[before:] == []


def test_the_only_activator_killed_comes_back_and_wakes_what_sleeps(api: Api, client: Client) -> None:
    with deployed(api, "sleeper", template(ASLEEP)) as service:
        (victim,) = system_pods(api, "activator")
        before = restarts(api, SYSTEM_NAMESPACE, victim)
        kill(api, SYSTEM_NAMESPACE, victim)
        wait_until("its restart", lambda: restarts(api, SYSTEM_NAMESPACE, victim) > before, 60)
        wait_until("its readiness", lambda: victim in system_pods(api, "activator"), 60)
        assert client.send(service).status == 200


def test_a_pod_killed_is_avoided_until_it_is_back(api: Api, client: Client) -> None:
    with deployed(api, "podkill", template({**ALWAYS, "min-scale": "2"})) as service:
        with client.load(service, 4, "/?sleep=50") as load:
            load.wait_good(50)
            victim = service.ready_pods()[0]["metadata"]["name"]
            kill(api, NAMESPACE, victim)
            wait_until("its restart", lambda: restarts(api, NAMESPACE, victim) > 0, 60)
            service.wait_pods(lambda n: n == 2, "two pods")
            before = len(load.failures)
            load.wait_good(100)
        assert load.failures[before:] == []


def test_a_pod_deleted_under_load_fails_no_request(api: Api, client: Client) -> None:
    with deployed(api, "deleted", template({**ALWAYS, "min-scale": "2"})) as service:
        with client.load(service, 4, "/?sleep=50") as load:
            load.wait_good(50)
            victim = service.ready_pods()[0]["metadata"]["name"]
            api.delete("v1", "Pod", NAMESPACE, victim)
            wait_until("another in its place", lambda: _replaced(service, victim), 60)
            load.wait_good(50)
        assert not load.failures


def _replaced(service: Service, victim: str) -> bool:
    names = [pod["metadata"]["name"] for pod in service.ready_pods()]
    return len(names) == 2 and victim not in names


def test_nothing_is_left_of_a_pod_that_is_gone(stack: Cluster, api: Api) -> None:
    with deployed(api, "left", template()) as service:
        addresses = [pod["status"]["podIP"] for pod in service.ready_pods()]
        spaces = {stack.place.pod(pod_number(address)) for address in addresses}
        assert spaces
        assert spaces <= set(network.namespaces())
    wait_until("its namespaces to go", lambda: not spaces & set(network.namespaces()), 60)
