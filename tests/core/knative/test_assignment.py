"""Which pods belong to which activator; cases of Knative's throttler_test.go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.knative.assignment import Share, assign, cluster_capacity, pick, share_of


@pytest.mark.parametrize(
    ("pods", "activators", "place", "picked"),
    [
        (1, 2, 1, (0, 1, 0)),
        (2, 3, 1, (1, 2, 0)),
        (2, 3, 2, (0, 1, 0)),
        (3, 3, 2, (2, 3, 0)),
        (10, 3, 0, (0, 3, 1)),
        (10, 3, 1, (3, 6, 1)),
        (10, 3, 2, (6, 9, 1)),
    ],
)
def test_pick_indices(pods: int, activators: int, place: int, picked: tuple[int, int, int]) -> None:
    assert pick(pods, Share(place, activators)) == picked


def test_assign_slice() -> None:
    pods = ["ip0", "ip1", "ip2", "ip3", "ip4", "ip5"]
    assert assign(pods, Share(-1, 4)) == pods
    assert assign(pods, Share(0, 1)) == pods
    assert assign(pods[:1], Share(2, 3)) == ["ip0"]
    assert assign(pods, Share(0, 4)) == ["ip0", "ip4"]
    assert assign(pods, Share(3, 4)) == ["ip3"]
    assert assign([], Share(0, 4)) == []


@given(st.integers(1, 60), st.integers(1, 20))
def test_every_pod_belongs_to_one_activator(pods: int, activators: int) -> None:
    shares = [assign(range(pods), Share(place, activators)) for place in range(activators)]
    if activators <= pods:
        assert sorted(pod for share in shares for pod in share) == list(range(pods))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        assert all(len(share) == 1 for share in shares)
        assert {pod for share in shares for pod in share} == set(range(pods))


def test_share_of() -> None:
    assert share_of("10.0.0.2", ["10.0.0.9", "10.0.0.2", "10.0.0.2"]) == Share(0, 2)
    assert share_of("10.0.0.2", ["10.0.0.10", "10.0.0.2"]) == Share(1, 2), "sorted as text"
    assert share_of("10.0.0.3", ["10.0.0.2"]) is None


@pytest.mark.parametrize(
    ("concurrency", "ready", "activators", "capacity"),
    [(10, 100, 0, 1000), (10, 10, 5, 20), (10, 10, 200, 1), (10, 0, 1, 0), (0, 5, 1, 0)],
)
def test_cluster_capacity(concurrency: int, ready: int, activators: int, capacity: int) -> None:
    assert cluster_capacity(concurrency, ready, activators) == capacity
