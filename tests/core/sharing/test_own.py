"""Whose each slot is by position: Knative's division, and what several on one pod split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.ids import FunctionID, InstanceID
from kserve_ext.core.knative.assignment import Share, assign
from kserve_ext.core.sharing.own import own_slots

NAMES = [FunctionID(name) for name in "abcdef"]


def pods_of(count: int) -> list[InstanceID]:
    return [InstanceID(f"p{k}") for k in range(count)]


@given(
    pods=st.integers(0, 12),
    concurrency=st.integers(1, 10),
    activators=st.sets(st.sampled_from(NAMES), min_size=1),
    strangers=st.sets(st.sampled_from(NAMES)),
)
def test_never_more_than_knatives_own_and_no_slot_twice(
    pods: int, concurrency: int, activators: set[FunctionID], strangers: set[FunctionID]
) -> None:
    listed = sorted(activators)
    own = own_slots(pods_of(pods), concurrency, listed, activators - strangers)
    for place, activator in enumerate(listed):
        of_knative = assign(pods_of(pods), Share(place, len(listed)))
        assert own.get(activator, {}).keys() <= set(of_knative)
        assert all(0 < count <= concurrency for count in own.get(activator, {}).values())
    for pod in pods_of(pods):
        assert sum(slots.get(pod, 0) for slots in own.values()) <= concurrency
    if not strangers:
        assert all(sum(slots.get(pod, 0) for slots in own.values()) == concurrency for pod in pods_of(pods))


def test_as_knative_where_there_are_pods_enough() -> None:
    own = own_slots(pods_of(5), 7, NAMES[:2], NAMES[:2])
    assert own == {"a": {"p0": 7, "p1": 7, "p4": 7}, "b": {"p2": 7, "p3": 7}}


def test_a_pod_of_several_is_split() -> None:
    own = own_slots(pods_of(1), 4, NAMES[:3], NAMES[:3])
    assert own == {"a": {"p0": 2}, "b": {"p0": 1}, "c": {"p0": 1}}
    assert own_slots(pods_of(1), 1, NAMES[:2], NAMES[:2]) == {"a": {"p0": 1}, "b": {}}
