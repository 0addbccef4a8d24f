"""A pool of level S2 in a real cluster: engines of two services sleep in its pods, a request wakes the one it needs.

The engine is a stand-in (tests/support/sleeping_runtime), which obeys sleep and wake by the code of runtimes/vllm_pd;
its device is a lock of its pod, so that two that are awake in one pod can't be. It says by which process it answers.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.parts import system_pods
from e2e.behaviours.services import Service, deployed, template
from e2e.behaviours.standby import Pool, adopted, facts, installing, wait_agreed
from e2e.stack.api import Api, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.place import SYSTEM_NAMESPACE
from kserve_ext.api.standby import names

RUNTIME = "tests.support.sleeping_runtime"
MODELS = ("one", "two")


@pytest.fixture(scope="module")
def installed(stack: Cluster) -> Iterator[Api]:
    with installing(stack) as api:
        yield api


@pytest.fixture
def client(ingress: Ingress, installed: Api) -> Client:
    return Client(ingress)


@pytest.fixture
def pool(installed: Api, tmp_path: Path) -> Pool:
    return Pool(installed, tmp_path)


@contextmanager
def services(pool: Pool, size: int, **marks: str) -> Iterator[list[Service]]:
    """One for each model, asleep; their pool has `size` pods."""
    listed = ",".join(f"{name}={pool.folder / name}" for name in MODELS)
    for name in MODELS:
        (pool.folder / name).write_text(f"model of {name}")
    with ExitStack() as stack:
        found = []
        for name in MODELS:
            made = template({"initial-scale": "0", "target-burst-capacity": "-1", "window": "60s", **marks})
            made["metadata"]["annotations"] |= {
                names.ENGINE: "galaxy",
                names.SIZE: str(size),
                names.LEVEL: "S2",
                names.MODELS: listed,
            }
            made["spec"]["containers"][0] |= {
                "command": ["python", "-m", RUNTIME],
                "args": [
                    "--port=8080",
                    f"--model={pool.folder / name}",
                    f"--served-model-name={name}",
                    f"--device={pool.folder}",
                    "--enable-sleep-mode",
                    "--control",
                ],
                "env": [{"name": "HF_HOME", "value": f"/{pool.mark}"}],
                "resources": {"limits": {"memory": "1Gi"}},
            }
            found.append(stack.enter_context(deployed(pool.api, name, made)))
        yield found


def used(service: Service) -> str:
    """What its PodAutoscaler says of the last time that it wanted a pod."""
    conditions = service.autoscaler().get("status", {}).get("conditions") or []
    said: dict[str, str] = next((c for c in conditions if c["type"] == names.STANDBY_USED), {})
    return f"{said.get('reason')}: {said.get('message')}"


def wait_used(service: Service, words: str) -> str:
    wait_until(f"{service.name}: {words}", lambda: words in used(service), 60, detail=lambda: used(service))
    return used(service)


def test_each_request_wakes_its_services_engine_in_a_pod_that_is_adopted(client: Client, pool: Pool) -> None:
    with services(pool, 1) as (one, two):
        for service, name in ((one, "one"), (two, "two")):
            pool.wait_filled(1)
            before = {pod["metadata"]["name"] for pod in pool.idle()}
            said = facts(client.send(service))
            assert (said["model"], said["name"]) == (f"model of {name}", name)
            assert said["generation"] > 0, "its KV memory is registered anew"
            (pod,) = wait_agreed(service, 1)
            assert {pod["metadata"]["name"]} == before
            assert "level S2" in wait_used(service, "Taken: ")
            assert facts(client.send(service))["pid"] == said["pid"]


def test_after_zero_the_next_request_wakes_an_engine_again(client: Client, pool: Pool) -> None:
    with services(pool, 1, window="6s") as (one, _):
        generations = []
        for _ in range(2):
            pool.wait_filled(1)
            generations.append(facts(client.send(one))["generation"])
            wait_agreed(one, 1)
            assert "level S2" in wait_used(one, "Taken: ")
            one.wait_zero()
            wait_agreed(one, 0)
        assert generations[0] < generations[1]


def test_an_engine_that_does_not_wake_is_started_from_the_zygote_and_people_hear_why(
    installed: Api, client: Client, pool: Pool
) -> None:
    with services(pool, 1) as (one, _):
        pool.wait_filled(1)
        (pool.folder / "one.wake-fails").touch()
        assert facts(client.send(one))["model"] == "model of one"
        wait_agreed(one, 1)
        said = wait_used(one, "FellBack: ")
        assert "level S0" in said
        assert "not from its level S2: its engine did not wake: the allocator refuses to map" in said
        assert len(adopted(one)) == 1
        assert fell_back(installed) >= 1


def fell_back(api: Api) -> float:
    """Slots of level S2 that were forked instead, as the autoscalers count."""
    found = 0.0
    for name in system_pods(api, "autoscaler"):
        address = api.get("v1", "Pod", SYSTEM_NAMESPACE, name)["status"]["podIP"]
        with urllib.request.urlopen(f"http://{address}:9090/metrics", timeout=5) as page:
            for line in page.read().decode().splitlines():
                if line.startswith('galaxy_standby_fell_back_total{level="S2",used="S0"}'):
                    found += float(line.split()[1])
    return found
