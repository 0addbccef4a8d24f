"""From stock to ours and back while requests, calls and streams are under way."""

from __future__ import annotations

from e2e.behaviours.calls import Calls
from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.services import deployed, template
from e2e.stack.api import Api
from e2e.stack.implementations import PARTS, use

ALWAYS = {"target-burst-capacity": "-1", "min-scale": "1"}


def test_there_and_back_fails_nothing(stock: Api, ingress: Ingress) -> None:
    client = Client(ingress)
    with (
        deployed(stock, "http", template(ALWAYS)) as http,
        deployed(stock, "direct", template({"target-burst-capacity": "0"})) as direct,
        deployed(stock, "calls", template(ALWAYS, http2=True)) as called,
    ):
        calls = Calls(lambda: client.backend(called))
        with (
            calls.running(),
            client.load(http, 6, "/?sleep=50", body=b"x" * 2000) as load,
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
