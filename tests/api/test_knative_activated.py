"""What an activator reads of a Revision; the probe rule from Knative's revision_backends_test.go."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.api.knative.revision import kept, read
from kserve_ext.core.knative.groups import Joined
from kserve_ext.core.knative.timeouts import Timeouts


def revision(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "ns",
        "name": "hello-00001",
        "uid": "u",
        "resourceVersion": "7",
        "labels": {"serving.knative.dev/service": "hello", "serving.knative.dev/configuration": "conf"},
        "annotations": {"a": "b"},
    }
    return {"metadata": metadata, "spec": {"containers": list(containers) or [{"image": "x"}], **spec}}


def test_defaults() -> None:
    found = read(revision())
    assert (found.key, found.namespace, found.name, found.uid) == ("ns/hello-00001", "ns", "hello-00001", "u")
    assert (found.concurrency, found.timeouts, found.http2, found.early) == (0, Timeouts(300.0), False, True)
    assert (found.service, found.configuration, found.port_name) == ("hello", "conf", "http")


def test_everything_set() -> None:
    found = read(
        revision(
            {"ports": [{"name": "h2c", "containerPort": 8080}]},
            containerConcurrency=7,
            timeoutSeconds=20,
            responseStartTimeoutSeconds=5,
            idleTimeoutSeconds=3,
        )
    )
    assert (found.concurrency, found.timeouts) == (7, Timeouts(20.0, 5.0, 3.0))
    assert (found.http2, found.port_name) == (True, "http2")


@pytest.mark.parametrize(
    ("containers", "early"),
    [
        ([{"readinessProbe": {"httpGet": {}}}], True),
        ([{"readinessProbe": {"exec": {"command": ["true"]}}}], False),
        ([{"startupProbe": {"httpGet": {}}}], False),
        ([{"ports": [{}]}, {"startupProbe": {"exec": {}}}], False),
        ([{}, {"ports": [{}], "readinessProbe": {"exec": {"command": ["true"]}}}], False),
    ],
)
def test_whether_a_pod_may_serve_before_kubernetes_calls_it_ready(
    containers: list[dict[str, Any]], early: bool
) -> None:
    assert read(revision(*containers)).early is early


def test_the_port_of_the_container_that_has_one() -> None:
    assert read(revision({"name": "sidecar"}, {"ports": [{"name": "h2c"}]})).http2


def in_group(routing: str = "active", ready: str = "True", role: str = "prefill") -> dict[str, Any]:
    whole = revision({"image": "x"})
    whole["metadata"] |= {
        "annotations": {"kserve-galaxy.io/role": role, "kserve-galaxy.io/pd-group": "chat", "a": "b"},
        "creationTimestamp": "2026-01-02T03:04:05Z",
    }
    whole["metadata"]["labels"]["serving.knative.dev/routingState"] = routing
    whole["status"] = {"conditions": [{"type": "Ready", "status": ready}, {"type": "Active"}]}
    return whole


@pytest.mark.parametrize("whole", [in_group(), in_group("reserve", "Unknown", "decode")])
def test_what_a_revision_says_of_its_group(whole: dict[str, Any]) -> None:
    small = kept(whole)
    assert read(small) == read(whole)
    assert set(small["metadata"]["annotations"]) == {"kserve-galaxy.io/role", "kserve-galaxy.io/pd-group"}
    good = whole["metadata"]["labels"]["serving.knative.dev/routingState"] == "active"
    role = whole["metadata"]["annotations"]["kserve-galaxy.io/role"]
    assert read(whole).joined == Joined(role, "chat", good, good, "2026-01-02T03:04:05Z")
    assert read(revision()).joined == Joined()


@pytest.mark.parametrize(
    "whole",
    [
        revision({"image": "x", "env": [], "readinessProbe": {"exec": {"command": ["true"]}}}),
        revision({"ports": [{"name": "h2c"}]}, timeoutSeconds=5, containerConcurrency=2),
    ],
)
def test_what_is_kept_reads_the_same(whole: dict[str, Any]) -> None:
    small = kept(whole)
    assert read(small) == read(whole)
    assert "annotations" not in small["metadata"]
    assert "image" not in str(small)
