"""Three activators and pods that take one request at a time: slots go where requests wait, and the home may die.

How crowded a pod is says its queue-proxy, which counts what waits in it as well: the user's server never sees two.
"""

from __future__ import annotations

import http.client
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

from e2e.behaviours.client import Client
from e2e.behaviours.parts import kill, replicas, restarts, system_pods
from e2e.behaviours.services import NAMESPACE, Service, deployed, template
from e2e.stack.api import Api, wait_until
from e2e.stack.implementations import whose
from e2e.stack.place import SYSTEM_NAMESPACE

#: Room for 252 requests, which takes three activators, as Knative counts a hundred for each; -1 would take two.
MARKS = {"target-burst-capacity": "250", "min-scale": "2", "max-scale": "2"}
CLIENTS = 9
EVERY_S = 0.3
#: In a Stat of queue-proxy: field 2, a double, the average of requests in it over the last second.
_CONCURRENCY = b"\x11"


def home_of(api: Api, service: Service) -> str:
    """The activator whose address has the highest hash with the revision."""
    key = f"{NAMESPACE}/{service.revision}".encode()

    def rank(pod: str) -> bytes:
        address = api.get("v1", "Pod", SYSTEM_NAMESPACE, pod)["status"]["podIP"]
        digest = blake2b(address.encode(), digest_size=8)
        digest.update(b"\0" + key)
        return digest.digest()

    return max(system_pods(api, "activator"), key=rank)


def crowd(address: str) -> float:
    connection = http.client.HTTPConnection(address, 9090, timeout=5)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "application/protobuf"})
        stat = connection.getresponse().read()
    finally:
        connection.close()
    name = 2 + stat[1]  # field 1, a short text
    if stat[name : name + 1] != _CONCURRENCY:
        return 0.0
    return float(struct.unpack("<d", stat[name + 1 : name + 9])[0])


@contextmanager
def watched(service: Service) -> Iterator[list[float]]:
    """How crowded its pods were during the block."""
    addresses = [pod["status"]["podIP"] for pod in service.ready_pods()]
    found: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            found.extend(crowd(address) for address in addresses)

    thread = threading.Thread(target=watch, name="crowd")
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_a_home_killed_under_load_fails_only_what_it_had(
    api: Api, client: Client, implementation: str
) -> None:
    with replicas(api, "activator", 3), deployed(api, "lend", template(MARKS, concurrency=1)) as service:
        wait_until("all three", lambda: len(client.ingress.endpoints(NAMESPACE, service.revision)) == 3, 60)
        service.wait_pods(lambda n: n == 2, "two pods")
        with watched(service) as crowds, client.load(service, CLIENTS, "/?sleep=50") as load:
            load.wait_good(100)
            victim = home_of(api, service)
            kill(api, SYSTEM_NAMESPACE, victim)
            wait_until("its restart", lambda: restarts(api, SYSTEM_NAMESPACE, victim) > 0, 60)
            wait_until("its readiness", lambda: victim in system_pods(api, "activator"), 60)
            before = len(load.failures)
            load.wait_good(200)
        lost = [failure for failure in load.failures[:before] if "ClientConnectorError" not in failure]
        assert len(lost) <= CLIENTS, load.failures
        assert load.failures[before:] == []
        if whose(implementation, "activator") == "ours":
            assert crowds
            assert max(crowds) <= 1.001, "a pod was sent two at once"
