"""What people hear of standby pods in a real cluster: galaxy status and explain, conditions and Events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.behaviours.client import Client
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.services import NAMESPACE, Service
from e2e.behaviours.standby import Pool, facts, installing, wait_agreed
from e2e.behaviours.test_install import run
from e2e.stack.api import Api, wait_until
from e2e.stack.cluster import Cluster


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


def said(service: Service, type_: str) -> tuple[str, str]:
    """Reason and message of a condition of its PodAutoscaler."""
    conditions = service.autoscaler().get("status", {}).get("conditions") or []
    found: dict[str, str] = next((c for c in conditions if c["type"] == type_), {})
    return found.get("reason", ""), found.get("message", "")


def events(service: Service) -> list[tuple[str, str]]:
    found = service.api.list("v1", "Event", NAMESPACE)
    return [
        (event["involvedObject"]["kind"], event["reason"])
        for event in found
        if event["involvedObject"]["name"] in (service.revision, service.name)
        and event["reason"].startswith("Standby")
    ]


def test_who_looks_finds_out_what_woke_a_revision(stack: Cluster, client: Client, pool: Pool) -> None:
    with pool.service("words", 1) as service:
        pool.wait_filled(1)
        facts(client.send(service))
        (pod,) = wait_agreed(service, 1)
        name = f"{NAMESPACE}/{pod['metadata']['name']}"
        wait_until("what woke it", lambda: "was its own after" in said(service, "StandbyUsed")[1], 60)
        reason, message = said(service, "StandbyUsed")
        assert reason == "Taken"
        assert name in message
        wait_until("the event", lambda: ("Revision", "StandbyTaken") in events(service), 60)
        explained = run(stack, "explain", service.revision, "--data", str(pool.folder), "-n", NAMESPACE)
        assert f"Standby pod {name} on node " in explained
        assert "it has the revision's labels" in explained
        assert "StandbyTaken" in explained
        status = json.loads(run(stack, "status", "--data", str(pool.folder), "-o", "json"))
        (row,) = [row for row in status["standby"]["pools"] if row["taken"]]
        assert (row["wanted"], row["runtime"], row["level"]) == (1, "bench.peers.tiny_runtime", "S0")
        (agent,) = status["standby"]["agents"]
        assert agent["heard_s"] is not None
        assert agent["slots"].get("serving") == 1


def test_a_package_without_a_zygote_is_named_at_once(
    client: Client, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2e.behaviours.standby.RUNTIME", "no.such.runtime")
    with pool.service("missing", 1) as service:
        wait_until(
            "the reason",
            lambda: "has no module no.such.runtime.zygote" in said(service, "StandbyReady")[1],
            60,
            detail=lambda: f"{said(service, 'StandbyReady')} {[p['status'] for p in pool.pods()]}",
        )
        assert said(service, "StandbyReady")[0] == "ZygoteFails"
        wait_until("the event", lambda: ("Service", "StandbyZygoteFails") in events(service), 60)
