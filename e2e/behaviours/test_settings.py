"""config-autoscaler: read again while running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from e2e.behaviours.client import Client
from e2e.behaviours.services import ASLEEP, deployed, template
from e2e.stack.api import Api
from e2e.stack.place import SYSTEM_NAMESPACE


@contextmanager
def settings(api: Api, config: str = "config-autoscaler", **values: str) -> Iterator[None]:
    """Keys with `_` for `-`; taken out again at the end."""
    named = {name.replace("_", "-"): value for name, value in values.items()}
    where = ("v1", "ConfigMap", SYSTEM_NAMESPACE, config)
    api.patch(*where, {"data": named})
    try:
        yield
    finally:
        api.patch(*where, {"data": dict.fromkeys(named)})


def test_a_changed_target_is_used_by_what_runs_already(api: Api, client: Client) -> None:
    with (
        deployed(api, "hot", template({"min-scale": "1"})) as service,
        client.load(service, 4, "/?sleep=200") as load,
    ):
        load.wait_good(30)
        assert len(service.pods()) == 1
        with settings(
            api, container_concurrency_target_default="1", container_concurrency_target_percentage="100"
        ):
            service.wait_pods(lambda n: n >= 4, "four pods or more")
        service.wait_pods(lambda n: n == 1, "one pod")
    assert not load.failures


def test_initial_scale_zero(api: Api, client: Client) -> None:
    """Ready without ever having had a pod."""
    with deployed(api, "none", template(ASLEEP)) as service:
        assert service.pods() == []
        assert client.send(service).status == 200


def test_a_wrong_value_is_refused_and_the_old_one_stays(api: Api, client: Client) -> None:
    with deployed(api, "wrong", template(ASLEEP)) as service:
        where = ("v1", "ConfigMap", SYSTEM_NAMESPACE, "config-autoscaler")
        status, _ = api.raw(
            "PATCH",
            api.path(*where),
            {"data": {"stable-window": "soon"}},
            "application/merge-patch+json",
        )
        assert status == 400
        assert client.send(service).status == 200
