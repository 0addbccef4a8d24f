"""A class of our own: the same autoscaler under another name, beside Knative's class or without it."""

from __future__ import annotations

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.services import deployed, template
from e2e.stack.api import Api, condition, wait_until


def test_our_own_class_scales_from_zero_and_back(implementation: str, api: Api, client: Client) -> None:
    if implementation == "stock":
        pytest.skip("Knative's autoscaler leaves other classes alone")
    with deployed(api, "own", template({"class": "kserve-galaxy.io"})) as service:
        service.wait_zero()
        assert client.send(service, "/").status == 200
        wait_until("PodAutoscaler active", lambda: condition(service.autoscaler(), "Active") == "True", 30)
        service.wait_zero()
        assert service.autoscaler()["status"]["desiredScale"] == 0
