"""Target burst capacity: whether requests go through the activator or straight to the pods."""

from __future__ import annotations

from collections.abc import Callable

from e2e.behaviours.client import Client
from e2e.behaviours.services import ASLEEP, NAMESPACE, Service, deployed, template
from e2e.stack.api import Api, wait_until
from e2e.stack.place import SYSTEM_NAMESPACE


def activators(api: Api) -> set[str]:
    return addresses(api.get("v1", "Endpoints", SYSTEM_NAMESPACE, "activator-service"))


def addresses(endpoints: dict[str, list[dict[str, list[dict[str, str]]]]]) -> set[str]:
    return {
        address["ip"]
        for subset in endpoints.get("subsets") or []
        for address in subset.get("addresses") or []
    }


def wait_path(api: Api, service: Service, wanted: Callable[[], set[str]]) -> None:
    def fits() -> bool:
        found = addresses(api.get("v1", "Endpoints", NAMESPACE, service.revision))
        return bool(found) and found == wanted()

    wait_until(f"{service.name}: endpoints", fits, 60, detail=service.story)


def test_minus_one_keeps_the_activator_in_the_path(api: Api, client: Client) -> None:
    with deployed(api, "always", template({"min-scale": "1", "target-burst-capacity": "-1"})) as service:
        wait_path(api, service, lambda: activators(api))
        answer = client.send(service)
        assert answer.status == 200
        assert answer.report["headers"]["K-Proxy-Request"] == ["activator"]


def test_zero_takes_it_out_whenever_there_are_pods(api: Api, client: Client) -> None:
    with deployed(api, "never", template({"target-burst-capacity": "0", **ASLEEP})) as service:
        wait_path(api, service, lambda: activators(api))
        with client.load(service, 2, "/?sleep=20") as load:
            load.wait_good(5)
            wait_path(api, service, lambda: {pod["status"]["podIP"] for pod in service.ready_pods()})
            load.wait_good(20)
        assert not load.failures


def test_the_default_takes_it_out_when_the_spare_capacity_suffices(api: Api, client: Client) -> None:
    """Three pods for a hundred each, and 200 to spare: not enough with 211. Five are."""
    with deployed(api, "default", template({"min-scale": "2"})) as service:
        wait_path(api, service, lambda: activators(api))
        assert client.send(service).status == 200
        service.update({"template": template({"min-scale": "4"})})
        wait_path(
            api, service, lambda: {pod["status"]["podIP"] for pod in service.ready_pods(service.revision)}
        )
        assert client.send(service).status == 200
