"""From stock to ours and back while requests, calls and streams are under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.services import NAMESPACE, Service, deployed, template
from e2e.behaviours.test_protocols import channel, metadata
from e2e.stack.api import Api
from e2e.stack.cluster import Cluster
from e2e.stack.implementations import PARTS, image, use
from e2e.stack.place import SYSTEM_NAMESPACE

ALWAYS = {"target-burst-capacity": "-1", "min-scale": "1"}


@pytest.fixture
def stock(stack: Cluster) -> Iterator[Api]:
    """Stock runs; in the end what ran before."""
    api = stack.api
    container = api.get("apps/v1", "Deployment", SYSTEM_NAMESPACE, PARTS[0])["spec"]["template"]["spec"][
        "containers"
    ][0]
    before = "stock" if container["image"] == image("stock", PARTS[0]) else "ours"
    use(api, "stock")
    yield api
    use(api, before)


class Calls:
    """gRPC calls one after the other, each over a channel of its own, until stopped."""

    def __init__(self, ingress: Ingress, service: Service) -> None:
        self._ingress = ingress
        self._service = service
        self._stopping = threading.Event()
        self.good = 0
        self.failures: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, name="calls")
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.02):
            found = self._ingress.pick(NAMESPACE, self._service.name)
            with channel(found) as opened:
                try:
                    opened.unary_unary("/e2e.Echo/Unary")(b"x", metadata=metadata(found), timeout=30)
                    self.good += 1
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code()} {error.details()}")


def test_there_and_back_fails_nothing(stack: Cluster, stock: Api, ingress: Ingress) -> None:
    client = Client(ingress)
    with (
        deployed(stock, "http", template(ALWAYS)) as http,
        deployed(stock, "direct", template({"target-burst-capacity": "0"})) as direct,
        deployed(stock, "calls", template(ALWAYS, http2=True)) as called,
    ):
        calls = Calls(ingress, called)
        with (
            calls.running(),
            client.load(http, 6, "/?sleep=50") as load,
            client.load(http, 2, "/events?n=10&every=500") as streams,
            client.load(direct, 2, "/?sleep=50") as past,
        ):
            load.wait_good(50)
            for implementation in ("ours", "stock"):
                for part in PARTS:
                    use(stock, implementation, [part])
                    load.wait_good(50)
                    streams.wait_good(2)
        assert [load.failures, streams.failures, past.failures, calls.failures] == [[], [], [], []]
        assert calls.good > 0


def test_what_sleeps_through_an_upgrade_wakes(stock: Api, ingress: Ingress) -> None:
    client = Client(ingress)
    with deployed(stock, "asleep", template()) as service:
        for implementation in ("ours", "stock"):
            service.wait_zero()
            use(stock, implementation)
            assert client.send(service).status == 200
