"""The API server away under load: silent for longer than a Lease lasts, and dead with all watches cut."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.behaviours.client import Client
from e2e.behaviours.services import ASLEEP, NAMESPACE, deployed, template
from e2e.stack import control_plane, knative, processes
from e2e.stack.api import Api, wait_until
from e2e.stack.cluster import Cluster

#: With one client that waits 100 ms for each answer, about a minute; no Lease of the autoscaler's lasts as long.
ANSWERS = 600


def wait_api_server(stack: Cluster) -> None:
    """Also until Knative's parts are ready."""
    wait_until("the API server", lambda: stack.api.raw("GET", "/readyz")[0] == 200, 60)
    for name in knative.DEPLOYMENTS:
        knative.wait_rolled_out(stack.api, name)


@contextmanager
def api_server_stopped(stack: Cluster) -> Iterator[None]:
    """Connections stay open and nobody answers, the worst kind of absence."""
    record = processes.Record.read(stack.place)
    assert record is not None
    pid = record.processes["kube-apiserver"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        wait_api_server(stack)


def test_requests_go_on_without_the_api_server(stack: Cluster, api: Api, client: Client) -> None:
    marks = {"target-burst-capacity": "-1", "min-scale": "1", "target": "2"}
    with (
        deployed(api, "asleep", template(ASLEEP)) as asleep,
        deployed(api, "away", template(marks)) as service,
    ):
        with client.load(service, 1, "/?sleep=100") as load:
            load.wait_good(20)
            with api_server_stopped(stack):
                load.wait_good(ANSWERS, 180)
            load.wait_good(20)
        assert not load.failures
        assert client.send(asleep).status == 200
        with client.load(service, 6, "/?sleep=100") as load:
            service.wait_pods(lambda n: n >= 3, "three pods or more")
        assert not load.failures


def test_watches_that_were_cut_are_taken_up_again(stack: Cluster, api: Api, client: Client) -> None:
    """Killed and started again; what changes afterwards is seen, and so is what changed meanwhile."""
    record = processes.Record.read(stack.place)
    assert record is not None
    marks = {"target-burst-capacity": "-1", "min-scale": "2", "target": "2"}
    with deployed(api, "cut", template(marks)) as service, client.load(service, 2, "/?sleep=50") as load:
        load.wait_good(20)
        os.kill(record.processes["kube-apiserver"].pid, signal.SIGKILL)
        load.wait_good(50)
        control_plane.start_api_server(stack.place, record)
        wait_api_server(stack)
        victim = service.ready_pods()[0]["metadata"]["name"]
        api.delete("v1", "Pod", NAMESPACE, victim)
        wait_until(
            "another in its place",
            lambda: victim not in [pod["metadata"]["name"] for pod in service.ready_pods()],
            60,
        )
        service.wait_pods(lambda n: n == 2, "two pods")
        with client.load(service, 6, "/?sleep=100") as more:
            service.wait_pods(lambda n: n >= 3, "three pods or more")
        load.wait_good(20)
        assert not more.failures
    assert not load.failures
