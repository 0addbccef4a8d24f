"""Concurrency and requests per second, and the limits that annotations set."""

from __future__ import annotations

from e2e.behaviours.client import Client
from e2e.behaviours.services import ASLEEP, deployed, template
from e2e.stack.api import Api, wait_until


def test_one_request_at_a_time(api: Api, client: Client) -> None:
    limits = {"max-scale": "3"}
    with deployed(api, "single", template(limits, concurrency=1)) as service:
        answers = []
        for _ in range(3):
            answers += client.send_many(service, 12, "/?sleep=50")
        assert [answer.status for answer in answers] == [200] * 36
        assert {answer.report["concurrent"] for answer in answers} == {1}


def test_overload_of_a_single_activator_path_is_held(api: Api, client: Client) -> None:
    limits = {"max-scale": "10", "target-burst-capacity": "-1", **ASLEEP}
    with deployed(api, "overload", template(limits, concurrency=1)) as service:
        answers = client.send_many(service, 60, "/?sleep=300")
        assert [answer.status for answer in answers] == [200] * 60


def test_min_scale_stays_without_traffic(api: Api, client: Client) -> None:
    with deployed(api, "min", template({"min-scale": "2"})) as service:
        service.wait_pods(lambda n: n == 2, "two pods")
        # A window and more without traffic: the autoscaler has decided on an empty window by then.
        wait_until(
            "desired scale 2 after a full window",
            lambda: service.autoscaler()["status"].get("desiredScale") == 2,
            30,
        )
        assert len(service.pods()) == 2
        assert client.send(service).status == 200


def test_max_scale_bounds_a_burst(api: Api, client: Client) -> None:
    limits = {"max-scale": "2", "target": "1"}
    with (
        deployed(api, "max", template(limits, concurrency=1)) as service,
        client.load(service, 8, "/?sleep=300") as load,
    ):
        service.wait_pods(lambda n: n == 2, "two pods")
        load.wait_good(20)
        assert len(service.pods()) == 2
        assert service.autoscaler()["status"]["desiredScale"] == 2
    assert not load.failures


def test_initial_scale(api: Api) -> None:
    with deployed(api, "initial", template({"initial-scale": "3"})) as service:
        assert len(service.ready_pods()) == 3
        service.wait_zero()


def test_activation_scale(api: Api, client: Client) -> None:
    with deployed(api, "activation", template({"activation-scale": "3", **ASLEEP})) as service:
        assert client.send(service).status == 200
        service.wait_pods(lambda n: n == 3, "three pods")


def test_concurrency_target(api: Api, client: Client) -> None:
    """Eight at a time, two for each pod at 100 % utilization."""
    marks = {"target": "2", "target-utilization-percentage": "100"}
    with deployed(api, "target", template(marks)) as service, client.load(service, 8, "/?sleep=200") as load:
        service.wait_pods(lambda n: 4 <= n <= 6, "four pods, or a few more")
        load.wait_good(50)
    assert not load.failures


def test_requests_per_second_target(api: Api, client: Client) -> None:
    """About forty a second, ten for each pod at 100 % utilization."""
    marks = {"metric": "rps", "target": "10", "target-utilization-percentage": "100"}
    with deployed(api, "rps", template(marks)) as service, client.load(service, 4, pause_s=0.1) as load:
        service.wait_pods(lambda n: 3 <= n <= 5, "four pods, or one less or more")
        load.wait_good(50)
    assert not load.failures


def test_up_down_up(api: Api, client: Client) -> None:
    with deployed(api, "updown", template({"target": "1"})) as service:
        for _ in range(2):
            with client.load(service, 3, "/?sleep=100") as load:
                service.wait_pods(lambda n: n >= 3, "three pods or more")
            assert not load.failures
            service.wait_zero()


def test_panic_outruns_the_stable_window(api: Api, client: Client) -> None:
    """Twelve at a time after half a minute of one at a time: the stable average alone would say eight only after
    as long again and more than 6,000 answers."""
    marks = {
        "window": "60s",
        "panic-window-percentage": "10",
        "target": "1",
        "target-utilization-percentage": "100",
        "min-scale": "1",
    }
    with deployed(api, "panic", template(marks)) as service:
        with client.load(service, 1, "/?sleep=100") as quiet:
            quiet.wait_good(300)
        with client.load(service, 12, "/?sleep=100") as load:
            service.wait_pods(lambda n: n >= 8, "eight pods or more")
            assert load.good < 3000
        assert not load.failures
