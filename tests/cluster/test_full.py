"""A nearly full cluster of real processes: preemption, the line, room that is passed on, labels and places."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.embedded import Embedded, echo_runtime, echo_service

pytestmark = pytest.mark.cluster

CLASSES = "".join(
    f"""---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {{name: {name}}}
value: {value}
preemptionPolicy: {policy}
"""
    for name, value, policy in (
        ("low", 1, "PreemptLowerPriority"),
        ("patient", 500, "Never"),
        ("high", 1000, "PreemptLowerPriority"),
    )
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Two nodes with room for two echo instances each."""
    root = tmp_path_factory.mktemp("full")
    labels = ("--node-labels", "node-0:topology.kubernetes.io/zone=a", "--node-labels", "node-1:disk=nvme")
    with Embedded(root / "data", "--nodes", "2", "--node-cpu", "200m", *labels) as cluster:
        cluster.apply(echo_runtime() + CLASSES)
        yield cluster


@pytest.fixture
def stored(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return f"file://{folder}"


def instances(cluster: Embedded) -> list[dict[str, Any]]:
    return [i for i in cluster.status()["instances"] if i["state"] not in ("failed", "gone")]


def running(cluster: Embedded, service: str) -> list[dict[str, Any]]:
    found = instances(cluster)
    return [i for i in found if f"/{service}-predictor-" in i["revision"] and i["state"] == "ready"]


def waiting(cluster: Embedded) -> list[str]:
    functions = cluster.status()["functions"]
    return [w["waiter"] for f in functions if f["kind"] == "schedule" for w in f["waiting"]]


BUSY = "    containerConcurrency: 1\n    terminationGracePeriodSeconds: 2\n"


class Clients:
    """Requests that go on until they are ended, so that each wants one instance of its service: one whose instance
    is taken is sent again."""

    def __init__(self, cluster: Embedded) -> None:
        self.cluster = cluster
        self._open: dict[str, list[subprocess.Popen[bytes]]] = {}

    def come(self, service: str, count: int) -> None:
        url = f"http://127.0.0.1:{self.cluster.port}/?delay=600"
        again = ("--retry", "1000000", "--retry-delay", "1", "--retry-all-errors")
        command = [
            "curl",
            "-s",
            *again,
            "-o",
            "/dev/null",
            "-H",
            f"Host: {service}.default.galaxy.local",
            url,
        ]
        self._open[service] = [subprocess.Popen(command) for _ in range(count)]

    def go(self, service: str) -> None:
        for process in self._open.pop(service, ()):
            process.kill()
            process.wait()

    def close(self) -> None:
        for service in list(self._open):
            self.go(service)


@pytest.fixture
def clients(full: Embedded) -> Iterator[Clients]:
    found = Clients(full)
    yield found
    found.close()


def busy(cluster: Embedded, name: str, stored: str, priority: str, most: int) -> None:
    spec = f"{BUSY}    maxReplicas: {most}\n    priorityClassName: {priority}\n"
    cluster.apply(echo_service(name, stored, spec=spec))


def test_a_higher_class_gets_room_what_it_took_waits_and_gets_it_back(
    full: Embedded, stored: str, clients: Clients
) -> None:
    busy(full, "crowd", stored, "low", 4)
    clients.come("crowd", 4)
    full.wait("four fill both nodes", lambda: len(running(full, "crowd")) == 4)
    busy(full, "patient", stored, "patient", 1)
    clients.come("patient", 1)
    full.wait("it waits", lambda: "default/patient-predictor-00001" in waiting(full))
    assert len(running(full, "crowd")) == 4, "its class does not preempt"
    busy(full, "vip", stored, "high", 1)
    clients.come("vip", 1)
    full.wait("one made room", lambda: len(running(full, "vip")) == 1 and len(running(full, "crowd")) == 3)
    log = (full.data / "log" / "dispatch-0.log").read_text()
    assert "preempted by default/vip-predictor-00001 (priority 1000 over 1): 1 of 1 of default/crowd" in log
    in_line = ["default/patient-predictor-00001", "default/crowd-predictor-00001"]
    full.wait("both wait, the higher class first", lambda: waiting(full) == in_line)
    clients.go("vip")
    full.galaxy("delete", "isvc", "vip")
    full.wait("the higher class of those who wait is next", lambda: len(running(full, "patient")) == 1)
    assert len(running(full, "crowd")) == 3
    clients.go("patient")
    full.galaxy("delete", "isvc", "patient")
    full.wait("and then the one that had made room", lambda: len(running(full, "crowd")) == 4)
    full.wait("nobody waits", lambda: not waiting(full))
    clients.close()
    full.galaxy("delete", "isvc", "crowd")
    full.wait("all is free", lambda: not instances(full))


def test_a_node_selector_and_the_labels_of_up_decide_where_it_runs(full: Embedded, stored: str) -> None:
    nodes = {n["node"]: n["labels"] for n in full.status()["nodes"]}
    assert nodes["node-0"]["topology.kubernetes.io/zone"] == "a"
    notes = {"autoscaling.knative.dev/initial-scale": "2"}
    full.apply(echo_service("picky", stored, annotations=notes, spec="    nodeSelector: {disk: nvme}\n"))
    full.wait("it runs", lambda: running(full, "picky"))
    assert {i["node"] for i in running(full, "picky")} == {"node-1"}
    full.galaxy("delete", "isvc", "picky")
    full.wait("all is free", lambda: not instances(full))


def test_an_unknown_class_is_refused_with_the_classes_that_there_are(full: Embedded, stored: str) -> None:
    said = full.apply(echo_service("typo", stored, spec="    priorityClassName: hgih\n"), code=1)
    assert "there is no such PriorityClass" in said
    assert "high" in said
    full.galaxy("delete", "isvc", "typo")
    assert "PreemptLowerPriority" in full.galaxy("get", "pc", "-o", "wide")
    assert "Value:       1000" in full.galaxy("describe", "pc", "high")
