"""Several activators and autoscalers at once, of one implementation and of both."""

from __future__ import annotations

from contextlib import ExitStack

from e2e.behaviours.client import Client
from e2e.behaviours.follower import Follower
from e2e.behaviours.parts import beside, holder, replicas, standing_still, system_pods
from e2e.behaviours.services import NAMESPACE, Service, deployed, template
from e2e.stack.api import Api, Object, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.implementations import whose
from e2e.stack.place import SYSTEM_NAMESPACE

ALWAYS = {"target-burst-capacity": "-1"}


class Scales(Follower):
    """Every number of replicas that a Service's Deployment was given, from now on."""

    def __init__(self, stack: Cluster, service: Service) -> None:
        labels = f"serving.knative.dev/service={service.name}"
        super().__init__(
            stack.place,
            {f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments?labelSelector={labels}": self._changed},
        )
        self.seen: list[int] = []

    def _changed(self, change: str, deployment: Object) -> None:
        if change == "SET" and self.seen[-1:] != [deployment["spec"]["replicas"]]:
            self.seen.append(deployment["spec"]["replicas"])


def wait_taken_over(api: Api, former: str) -> None:
    wait_until("another holder", lambda: holder(api) not in ("", former), 120)


def test_two_activators_serve_a_pod_that_takes_one_request_at_a_time(api: Api, client: Client) -> None:
    marks = {**ALWAYS, "max-scale": "2"}
    with replicas(api, "activator", 2), deployed(api, "pair", template(marks, concurrency=1)) as service:
        wait_until("both", lambda: len(client.ingress.endpoints(NAMESPACE, service.revision)) == 2, 60)
        answers = client.send_many(service, 30, "/?sleep=100")
        assert [answer.status for answer in answers] == [200] * 30
        assert {answer.report["concurrent"] for answer in answers} == {1}


def test_another_autoscaler_takes_over_from_one_that_vanished(api: Api, client: Client) -> None:
    """Its Lease has to run out first."""
    with replicas(api, "autoscaler", 2), deployed(api, "vanish", template()) as service:
        service.wait_zero()
        former = holder(api)
        assert former in system_pods(api, "autoscaler")
        api.delete("v1", "Pod", SYSTEM_NAMESPACE, former, grace_s=0)
        wait_taken_over(api, former)
        assert client.send(service).status == 200
        service.wait_zero()


def test_an_autoscaler_that_lost_its_lease_while_it_stood_still_writes_nothing(
    stack: Cluster, implementation: str, api: Api, client: Client
) -> None:
    """Its last decision was for two clients; that of the one that took over is for eight. Knative's writes its own
    once more before it looks at the Lease."""
    marks = {"target": "1", "target-utilization-percentage": "100"}
    with replicas(api, "autoscaler", 2), deployed(api, "still", template(marks)) as service:
        with ExitStack() as running:
            few = running.enter_context(client.load(service, 2, "/?sleep=100"))
            service.wait_pods(lambda n: n >= 2, "two pods or more")
            former = holder(api)
            with standing_still(api, SYSTEM_NAMESPACE, former):
                wait_taken_over(api, former)
                more = running.enter_context(client.load(service, 6, "/?sleep=100"))
                service.wait_pods(lambda n: n >= 6, "six pods or more")
                scales = running.enter_context(Scales(stack, service))
                wait_until("the scale so far", lambda: scales.seen, 30)
            more.wait_good(900)
            seen = list(scales.seen)
            assert holder(api) not in ("", former)
        assert [few.failures, more.failures] == [[], []]
        if whose(implementation, "autoscaler") == "ours":
            assert min(seen) > 4


def test_an_activator_of_the_other_implementation_beside(
    api: Api, client: Client, implementation: str
) -> None:
    other = "stock" if whose(implementation, "activator") == "ours" else "ours"
    with beside(api, "activator", other), deployed(api, "mixed", template(ALWAYS)) as service:
        wait_until("both", lambda: len(client.ingress.endpoints(NAMESPACE, service.revision)) == 2, 60)
        for _ in range(2):
            service.wait_zero()
            with client.load(service, 8, "/?sleep=20") as load:
                load.wait_good(100)
            assert not load.failures


def test_an_autoscaler_of_the_other_implementation_beside(
    api: Api, client: Client, implementation: str
) -> None:
    """Whichever holds the bucket decides; statistics reach it through either."""
    other = "stock" if whose(implementation, "autoscaler") == "ours" else "ours"
    with beside(api, "autoscaler", other), deployed(api, "mixed", template({"target": "1"})) as service:
        for _ in range(2):
            service.wait_zero()
            with client.load(service, 3, "/?sleep=100") as load:
                service.wait_pods(lambda n: n >= 3, "three pods or more")
            assert not load.failures
            former = holder(api)
            api.delete("v1", "Pod", SYSTEM_NAMESPACE, former)
            wait_taken_over(api, former)
