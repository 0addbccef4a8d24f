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
    assert reading.requested({"spec": {"containers": containers}}) == {"cpu", "memory", "nvidia.com/gpu"}


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        (
            "0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu. preemption: 0/3 nodes",
            {"cpu", "nvidia.com/gpu"},
        ),
        ("0/1 nodes are available: 1 Insufficient rdma/hca_shared_devices_a.", {"rdma/hca_shared_devices_a"}),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {a: b}.", set()),
    ],
)
def test_what_nodes_lack_is_what_the_scheduler_says(said: str, lacks: set[str]) -> None:
    assert reading.lacking(said) == lacks
