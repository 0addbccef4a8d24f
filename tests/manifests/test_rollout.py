"""When a roll-out is done, has failed, or goes on, in the cases that kubectl tells apart."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.cli.knative.rollout import complaints, progress

LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too late"}


@pytest.mark.parametrize(
    ("status", "done", "failed", "text"),
    [
        ({}, False, False, "waiting for the Deployment controller"),
        ({"observedGeneration": 1}, False, False, "waiting for the Deployment controller"),
        ({"observedGeneration": 2, "conditions": [LATE]}, False, True, "too late"),
        (
            {"observedGeneration": 2, "updatedReplicas": 1, "replicas": 2},
            False,
            False,
            "1 of 2 new pods exist",
        ),
        ({"observedGeneration": 2, "updatedReplicas": 2, "replicas": 3}, False, False, "former pods left: 1"),
        (
            {"observedGeneration": 2, "updatedReplicas": 2, "replicas": 2, "availableReplicas": 1},
            False,
            False,
            "1 of 2 pods are available",
        ),
        (
            {"observedGeneration": 3, "updatedReplicas": 2, "replicas": 2, "availableReplicas": 2},
            True,
            False,
            "2 of 2 pods are available",
        ),
    ],
)
def test_progress(status: dict[str, Any], done: bool, failed: bool, text: str) -> None:
    deployment = {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}
    assert progress(deployment) == (done, failed, text)


def test_a_deployment_scaled_to_zero_is_done() -> None:
    status = {"observedGeneration": 1}
    assert progress({"metadata": {"generation": 1}, "spec": {"replicas": 0}, "status": status}).done


@pytest.mark.parametrize(
    ("status", "done", "text"),
    [
        ({"observedGeneration": 1}, False, "waiting for the DaemonSet controller"),
        ({"observedGeneration": 2, "desiredNumberScheduled": 2}, False, "0 of 2 new pods exist"),
        (
            {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2},
            False,
            "0 of 2 pods are available",
        ),
        ({"observedGeneration": 2, "desiredNumberScheduled": 0}, True, "0 of 0 pods are available"),
    ],
)
def test_progress_on_nodes(status: dict[str, Any], done: bool, text: str) -> None:
    found = progress({"kind": "DaemonSet", "metadata": {"generation": 2}, "spec": {}, "status": status})
    assert (found.done, found.text) == (done, text)


def test_complaints_name_pod_and_reason() -> None:
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 10s"}
    unschedulable = {"type": "PodScheduled", "reason": "Unschedulable", "message": "0/3 nodes"}
    pods: list[dict[str, Any]] = [
        {"metadata": {"name": "a"}, "status": {"containerStatuses": [{"state": {"waiting": waiting}}]}},
        {"metadata": {"name": "b"}, "status": {"conditions": [unschedulable]}},
        {"metadata": {"name": "c"}, "status": {"containerStatuses": [{"state": {"running": {}}}]}},
        {
            "metadata": {"name": "d"},
            "status": {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]},
        },
        {"metadata": {"name": "e"}},
    ]
    assert complaints(pods) == ["a: CrashLoopBackOff back-off 10s", "b has no node: 0/3 nodes"]
