"""The agent of a node in a real cluster: tokens that the API server knows, orders, and activators that hear.

The standby pod is a script (dial.py), the autoscaler is the test: what is tried is what lies between the two.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.parts import kill, restarts, system_pods
from e2e.behaviours.services import ASLEEP, NAMESPACE, deployed, template
from e2e.behaviours.test_install import OPTIONS, run
from e2e.stack import knative
from e2e.stack.api import Api, Object, condition, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.implementations import grant, images, roll_out, use
from e2e.stack.place import SYSTEM_NAMESPACE
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby.facts import Assignment, Timeouts
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.wire.messages import FreeSlot, NodeSlots, SlotReply, TakeSlot, WatchSlots

AGENT = "galaxy-node-agent"
FIELDS = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
    "POD_IP": "status.podIP",
}


def standby(name: str, audience: str = "kserve-galaxy.io") -> Object:
    sources = [{"serviceAccountToken": {"path": "token", "audience": audience, "expirationSeconds": 3600}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": NAMESPACE,
            "name": name,
            "labels": {"kserve-galaxy.io/standby-pool": "x"},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "user-container",
                    "image": "galaxy.local/none:1",
                    "command": ["python", "-m", "e2e.behaviours.dial"],
                    "env": [
                        {"name": n, "valueFrom": {"fieldRef": {"fieldPath": p}}} for n, p in FIELDS.items()
                    ],
                    "volumeMounts": [
                        {"name": "socket", "mountPath": "/run/kserve-galaxy", "readOnly": True},
                        {"name": "token", "mountPath": "/var/run/secrets/kserve-galaxy.io"},
                    ],
                }
            ],
            "volumes": [
                {"name": "socket", "hostPath": {"path": "/run/kserve-galaxy", "type": "Directory"}},
                {"name": "token", "projected": {"sources": sources}},
            ],
        },
    }


@pytest.fixture(scope="module")
def installed(stack: Cluster) -> Iterator[Api]:
    """Ours with the component, over what Knative shipped; in the end what ran before."""
    api = stack.api
    before = images(api)
    use(api, "stock")
    install(stack)
    try:
        yield api
    finally:
        run(stack, "uninstall")
        if before != images(api):
            grant(api)
            roll_out(api, before)


def install(stack: Cluster) -> None:
    """With an autoscaler that leaves standby pods to the test, whose pods it would know nothing of."""
    run(stack, "install", *OPTIONS, "--component", "standby")
    container = {"name": "autoscaler", "env": [{"name": "GALAXY_STANDBY", "value": "off"}]}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    stack.api.patch("apps/v1", "Deployment", SYSTEM_NAMESPACE, "autoscaler", patch, strategic=True)
    knative.wait_rolled_out(stack.api, "autoscaler")


@contextmanager
def standing_by(api: Api, *pods: Object) -> Iterator[None]:
    for pod in pods:
        api.apply(pod)
    try:
        yield
    finally:
        for pod in pods:
            api.delete("v1", "Pod", NAMESPACE, pod["metadata"]["name"])


class Autoscaler:
    """What the test says in its place."""

    def __init__(self, api: Api) -> None:
        self._api = api
        held = api.get("v1", "Secret", SYSTEM_NAMESPACE, "galaxy-peers")["data"]["key"]
        self._key = base64.b64decode(held)

    def ask(self, message: Any) -> Any:
        """Again while the agent can't be reached: it waits for the key that the first activator makes."""

        async def call() -> Any:
            rpc = Rpc("test", self._key)
            try:
                return await rpc.call(f"{self.agent()['status']['podIP']}:8015", message)
            except RpcError as error:
                if error.sent:
                    raise
                return None
            finally:
                await rpc.close()

        return wait_until("an answer of the agent", lambda: asyncio.run(call()), 30)

    def agent(self) -> Object:
        (name,) = system_pods(self._api, AGENT)
        return self._api.get("v1", "Pod", SYSTEM_NAMESPACE, name)

    def slots(self) -> NodeSlots:
        found: NodeSlots = self.ask(WatchSlots())
        return found

    def wait(self, **states: str) -> None:
        """Until the agent tells of these slots, and no others."""
        wanted = {f"{NAMESPACE}/{name}": state for name, state in states.items()}
        seen: dict[str, str] = {}

        def there() -> bool:
            seen.clear()
            seen.update({slot.pod: slot.state for slot in self.slots().slots})
            return seen == wanted

        wait_until(f"slots {wanted}", there, 30, detail=lambda: str(seen))

    def take(self, name: str, revision: str, tell: tuple[str, ...]) -> SlotReply:
        key = RevisionKey(f"{NAMESPACE}/{revision}")
        given = Assignment(key, InstanceID(name), ("x",), (), 8080, False, 0, Timeouts(), "", ())
        reply: SlotReply = self.ask(TakeSlot(f"{NAMESPACE}/{name}", self.uid(name), given, tell, 1))
        return reply

    def free(self, name: str, revision: str) -> SlotReply:
        key = RevisionKey(f"{NAMESPACE}/{revision}")
        reply: SlotReply = self.ask(FreeSlot(f"{NAMESPACE}/{name}", self.uid(name), key, 1))
        return reply

    def activators(self) -> tuple[str, ...]:
        names = system_pods(self._api, "activator")
        pods = [self._api.get("v1", "Pod", SYSTEM_NAMESPACE, name) for name in names]
        return tuple(f"{pod['status']['podIP']}:8014" for pod in pods)

    def uid(self, name: str) -> str:
        return str(self._api.get("v1", "Pod", NAMESPACE, name)["metadata"]["uid"])


def lines(stack: Cluster, name: str) -> list[Object]:
    log = stack.place.logs / f"pod-{NAMESPACE}-{name}-user-container.log"
    found = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in found if line.startswith("{")]


def test_a_pod_proves_itself_by_its_bound_token_and_no_other(stack: Cluster, installed: Api) -> None:
    autoscaler = Autoscaler(installed)
    with standing_by(installed, standby("good"), standby("wrong", audience="somebody-else")):
        autoscaler.wait(good="ready")
        wait_until("a refusal", lambda: lines(stack, "wrong"), 30)
        assert "kserve-galaxy.io" in lines(stack, "wrong")[0]["reason"]
        (slot,) = autoscaler.slots().slots
        assert slot.addr == installed.get("v1", "Pod", NAMESPACE, "good")["status"]["podIP"]
        status = autoscaler.slots().status
        assert status.capacity.cpu_milli > 0
        assert status.accepting
    autoscaler.wait()


def test_an_agent_that_is_killed_knows_its_slots_again(installed: Api) -> None:
    autoscaler = Autoscaler(installed)
    with standing_by(installed, standby("one"), standby("two")):
        autoscaler.wait(one="ready", two="ready")
        autoscaler.take("two", "none", ())
        autoscaler.wait(one="ready", two="serving")
        name = autoscaler.agent()["metadata"]["name"]
        before = restarts(installed, SYSTEM_NAMESPACE, name)
        kill(installed, SYSTEM_NAMESPACE, name)
        wait_until("another process", lambda: restarts(installed, SYSTEM_NAMESPACE, name) > before, 30)
        wait_until("it to be ready", lambda: system_pods(installed, AGENT), 30)
        autoscaler.wait(one="ready", two="serving")


def test_a_held_request_goes_to_a_pod_that_no_endpoints_know(installed: Api, ingress: Ingress) -> None:
    client = Client(ingress)
    autoscaler = Autoscaler(installed)
    annotations = {**ASLEEP, "max-scale": "1"}
    with (
        standing_by(installed, standby("spare")),
        deployed(installed, "standby", template(annotations, env={"OPEN_AFTER_MS": "60000"})) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        autoscaler.wait(spare="ready")
        revision = service.revision
        asking = pool.submit(client.send, service)
        wait_until("the plain way to begin", service.pods, 30)
        assert autoscaler.take("spare", revision, autoscaler.activators()).reason == ""
        answer = asking.result(30)
        assert (answer.status, answer.body) == (200, b"spare")
        assert not service.ready_pods(), "the pod that was scaled has yet to open"
        assert autoscaler.free("spare", revision).reason == ""
        autoscaler.wait(spare="ready")


def test_uninstalling_takes_out_what_stands_by(stack: Cluster, installed: Api) -> None:
    installed.apply(standby("left"))
    wait_until("it to run", lambda: ready(installed, "left"), 30)
    said = run(stack, "uninstall")
    assert f"standby pod {NAMESPACE}/left deleted" in said
    wait_until("its end", lambda: "left" not in names(installed), 30)
    assert not system_pods(installed, AGENT)
    install(stack)


def ready(api: Api, name: str) -> bool:
    return name in names(api) and condition(api.get("v1", "Pod", NAMESPACE, name), "Ready") == "True"


def names(api: Api) -> list[str]:
    return [pod["metadata"]["name"] for pod in api.list("v1", "Pod", NAMESPACE)]
