"""Annotations and ConfigMaps that nobody can read, past the webhooks that would refuse them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.parts import failing_to_start, restart, start_anew, system_pods
from e2e.behaviours.services import NAMESPACE, SERVING, Service, deployed, template
from e2e.behaviours.test_settings import settings
from e2e.stack import knative
from e2e.stack.api import Api, Object, wait_until
from e2e.stack.implementations import PARTS

_WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
_REGISTRATION = "admissionregistration.k8s.io/v1"
UNREADABLE = {
    "min-scale": "two",
    "max-scale": "few",
    "initial-scale": "some",
    "activation-scale": "0.5",
    "target": "lots",
    "target-burst-capacity": "all",
    "target-utilization-percentage": "most",
    "panic-window-percentage": "wide",
    "panic-threshold-percentage": "-",
    "scale-down-delay": "later",
    "scale-to-zero-pod-retention-period": "a while",
    "metric": "moon",
}


@contextmanager
def without_webhooks(api: Api) -> Iterator[None]:
    """Knative makes none anew that are gone, it only fills in those that are there."""
    saved: list[Object] = []
    for kind in _WEBHOOKS:
        saved += [
            {**obj, "apiVersion": _REGISTRATION, "kind": kind} for obj in api.list(_REGISTRATION, kind, "")
        ]
    try:
        for obj in saved:
            api.delete(_REGISTRATION, obj["kind"], "", obj["metadata"]["name"])
        yield
    finally:
        for obj in saved:
            metadata = obj["metadata"]
            obj["metadata"] = {key: metadata[key] for key in ("name", "labels") if key in metadata}
            api.create(obj)
        knative.wait_hooked(api)


def spoil(api: Api, service: Service, marks: dict[str, str]) -> None:
    """The revision's annotations, which Knative's controller hands on to its PodAutoscaler."""
    named = {f"autoscaling.knative.dev/{name}": value for name, value in marks.items()}
    patch = {"metadata": {"annotations": named}}

    def patched() -> bool:
        """The API server takes a moment to hear that there are no webhooks any more."""
        api.patch(SERVING, "Revision", NAMESPACE, service.revision, patch)
        return True

    wait_until("no webhook", patched, 30)
    wait_until(
        "the PodAutoscaler's annotations",
        lambda: named.items() <= service.autoscaler()["metadata"]["annotations"].items(),
        30,
    )


def test_annotations_that_nobody_can_read_count_as_none(api: Api, client: Client) -> None:
    """Also for parts that start anew; what is beside goes on as ever."""
    with (
        deployed(api, "spoilt", template()) as service,
        deployed(api, "sound", template({"target": "1"})) as sound,
        without_webhooks(api),
    ):
        spoil(api, service, UNREADABLE)
        for _ in range(2):
            service.wait_zero()
            with client.load(service, 4, "/?sleep=20") as load:
                load.wait_good(50)
            assert not load.failures
            for part in PARTS:
                restart(api, part)
        service.wait_zero()
        assert client.send(service).status == 200
        with client.load(sound, 3, "/?sleep=100") as load:
            sound.wait_pods(lambda n: n >= 3, "three pods or more")
        assert not load.failures


def test_a_config_that_nobody_can_read_changes_nothing(api: Api, client: Client) -> None:
    """One key is wrong, so the others of the same ConfigMap don't count either; what follows does."""
    eager = {"container_concurrency_target_percentage": "100"}
    with (
        deployed(api, "config", template({"min-scale": "1"})) as service,
        without_webhooks(api),
        client.load(service, 4, "/?sleep=100") as load,
    ):
        load.wait_good(20)
        with settings(api, **eager, container_concurrency_target_default="1"):
            service.wait_pods(lambda n: n >= 4, "four pods or more")
            with settings(api, container_concurrency_target_default="lots", max_scale="1"):
                load.wait_good(400)
                assert len(service.pods()) >= 4
            with settings(api, container_concurrency_target_default="100"):
                service.wait_pods(lambda n: n == 1, "one pod")
    assert not load.failures


@pytest.mark.parametrize(
    ("part", "config", "unreadable"),
    [
        ("autoscaler", "config-autoscaler", {"stable_window": "soon"}),
        ("activator", "config-network", {"enable_mesh_pod_addressability": "perhaps"}),
    ],
    ids=["autoscaler", "activator"],
)
def test_who_cannot_read_its_config_does_not_start_and_the_former_one_goes_on(
    api: Api, client: Client, part: str, config: str, unreadable: dict[str, str]
) -> None:
    with deployed(api, "unread", template()) as service, without_webhooks(api):
        service.wait_zero()
        former = system_pods(api, part)
        with settings(api, config, **unreadable):
            start_anew(api, part)
            wait_until("a pod that doesn't start", lambda: failing_to_start(api, part), 60)
            assert system_pods(api, part) == former
            assert client.send(service).status == 200
            service.wait_zero()
        knative.wait_rolled_out(api, part)
        assert client.send(service).status == 200
