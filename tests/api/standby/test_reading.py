"""What is read of pods and of what the scheduler says."""

from __future__ import annotations

import pytest

from kserve_ext.api.standby import reading


def test_a_pod_asks_for_what_any_of_its_containers_requests_or_limits() -> None:
    containers = [
        {"resources": {"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}},
        {"resources": {"limits": {"memory": "1Gi"}}},
        {},
    ]
    assert reading.requested({"spec": {"containers": containers}}) == {
        "cpu",
        "memory",
        "nvidia.com/gpu",
        "pods",
    }


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        (
            "0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu. preemption: 0/3 nodes",
            {"cpu", "nvidia.com/gpu"},
        ),
        ("0/1 nodes are available: 1 Insufficient rdma/hca_shared_devices_a.", {"rdma/hca_shared_devices_a"}),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {a: b}.", set()),
        ("0/2 nodes are available: 1 Insufficient memory, 1 Too many pods.", {"memory", "pods"}),
        (
            "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: "
            "1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.",
            {"cpu"},
        ),
        (
            "0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.",
            {"cpu"},
        ),
        # As Kubernetes 1.36 says it of a pod that requests more CPUs than any node has.
        (
            "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are "
            "available: 1 Preemption is not helpful for scheduling.",
            set(),
        ),
    ],
)
def test_what_nodes_lack_is_what_the_scheduler_says(said: str, lacks: set[str]) -> None:
    assert reading.lacking(said) == lacks


@pytest.mark.parametrize(
    ("spec", "does"),
    [
        ({}, False),
        ({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}, False),
        ({"priority": 5, "preemptionPolicy": "PreemptLowerPriority"}, True),
        ({"priority": 5}, True),
        ({"priority": 5, "preemptionPolicy": "Never"}, False),
        ({"priority": -5, "preemptionPolicy": "PreemptLowerPriority"}, False),
    ],
)
def test_a_pod_of_a_class_that_preempts_would_evict_others(spec: dict[str, object], does: bool) -> None:
    assert bool(reading.evicts({"spec": {**spec, "priorityClassName": "high"}})) is does
