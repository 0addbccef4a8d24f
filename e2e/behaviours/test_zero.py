"""Scale from zero and back, and what is held meanwhile."""

from __future__ import annotations

from e2e.behaviours.client import Client
from e2e.behaviours.services import ASLEEP, deployed, template
from e2e.stack.api import Api, condition, wait_until


def test_from_zero_and_back_twice(api: Api, client: Client) -> None:
    with deployed(api, "zero", template()) as service:
        for _ in range(2):
            service.wait_zero()
            wait_until(
                "PodAutoscaler inactive", lambda: condition(service.autoscaler(), "Active") == "False", 30
            )
            assert service.autoscaler()["status"]["desiredScale"] == 0
            answer = client.send(service, "/some/path?a=b", headers={"X-Custom": "kept"})
            assert answer.status == 200
            assert (answer.report["path"], answer.report["query"]) == ("/some/path", "a=b")
            assert answer.report["headers"]["X-Custom"] == ["kept"]
            wait_until(
                "PodAutoscaler active", lambda: condition(service.autoscaler(), "Active") == "True", 30
            )


def test_requests_at_zero_are_all_held_and_answered(api: Api, client: Client) -> None:
    with deployed(api, "held", template(ASLEEP)) as service:
        answers = client.send_many(service, 40)
        assert [answer.status for answer in answers] == [200] * 40


def test_a_body_sent_at_zero_arrives_whole(api: Api, client: Client) -> None:
    body = bytes(range(256)) * 1024
    with deployed(api, "body", template(ASLEEP)) as service:
        answer = client.send(service, "/", "POST", body)
        assert (answer.status, answer.report["method"], answer.report["body_bytes"]) == (
            200,
            "POST",
            len(body),
        )


def test_a_request_waits_for_a_server_that_opens_late(api: Api, client: Client) -> None:
    with deployed(api, "late", template(ASLEEP, env={"OPEN_AFTER_MS": "5000"})) as service:
        answers = client.send_many(service, 5)
        assert [answer.status for answer in answers] == [200] * 5


def test_many_revisions_wake_at_once(api: Api, client: Client) -> None:
    with (
        deployed(api, "many", template(ASLEEP)) as first,
        deployed(api, "many", template(ASLEEP)) as second,
        deployed(api, "many", template(ASLEEP)) as third,
    ):
        with client.load(first, 2) as one, client.load(second, 2) as two, client.load(third, 2) as three:
            for load in (one, two, three):
                load.wait_good(10)
        assert [load.failures for load in (one, two, three)] == [[], [], []]
