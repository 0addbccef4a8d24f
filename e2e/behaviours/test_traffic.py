"""Roll-outs of revisions and splits between them, under load."""

from __future__ import annotations

from e2e.behaviours.client import Client
from e2e.behaviours.services import deployed, template
from e2e.stack.api import Api, wait_until


def test_a_new_revision_takes_over_without_a_failed_request(api: Api, client: Client) -> None:
    with deployed(api, "rollout", template(env={"VERSION": "1"})) as service:
        first = service.revision
        with client.load(service, 4, "/?sleep=20") as load:
            load.wait_good(20)
            service.update({"template": template(env={"VERSION": "2"})})
            second = service.revision
            wait_until("the new revision to be asked", lambda: load.revisions[second] > 50, 60)
        assert second != first
        assert not load.failures
        assert client.send(service).report["version"] == "2"


def test_canary_split(api: Api, client: Client) -> None:
    with deployed(api, "canary", template({"min-scale": "1"}, env={"VERSION": "1"})) as service:
        first = service.revision
        service.update(
            {
                "template": template({"min-scale": "1"}, env={"VERSION": "2"}),
                "traffic": [
                    {"revisionName": first, "percent": 80},
                    {"latestRevision": True, "percent": 20},
                ],
            }
        )
        answers = client.send_many(service, 25) + client.send_many(service, 25)
        versions = [answer.report["version"] for answer in answers]
        assert [answer.status for answer in answers] == [200] * 50
        assert versions.count("1") > versions.count("2") > 0


def test_a_revision_without_traffic_goes_to_zero_though_another_has_some(api: Api, client: Client) -> None:
    with deployed(api, "retired", template({"min-scale": "1"}, env={"VERSION": "1"})) as service:
        first = service.revision
        service.update({"template": template(env={"VERSION": "2"})})
        with client.load(service, 2, "/?sleep=20") as load:
            wait_until("the old revision at zero", lambda: not service.pods(first), 60)
            load.wait_good(5)
        assert not load.failures
