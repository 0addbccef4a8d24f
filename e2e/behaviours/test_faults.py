"""The API server away under load, for longer than a Lease lasts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.behaviours.client import Client
from e2e.behaviours.services import deployed, template
from e2e.stack import processes
from e2e.stack.api import Api, wait_until
from e2e.stack.cluster import Cluster

#: With one client that waits 100 ms for each answer, about a minute; Leases of the autoscaler last as long.
ANSWERS = 600


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
        wait_until("the API server", lambda: stack.api.raw("GET", "/readyz")[0] == 200, 60)


def test_requests_go_on_without_the_api_server(stack: Cluster, api: Api, client: Client) -> None:
    marks = {"target-burst-capacity": "-1", "min-scale": "1", "target": "2"}
    with (
        deployed(api, "asleep", template()) as asleep,
        deployed(api, "away", template(marks)) as service,
    ):
        with client.load(service, 1, "/?sleep=100") as load:
            load.wait_good(20)
            asleep.wait_zero()
            with api_server_stopped(stack):
                load.wait_good(ANSWERS, 180)
            load.wait_good(20)
        assert not load.failures
        assert client.send(asleep).status == 200
        with client.load(service, 6, "/?sleep=100") as load:
            service.wait_pods(lambda n: n >= 3, "three pods or more")
        assert not load.failures
