"""sampling.py: Knative's sample sizes, who is asked in which order, and the way back from a mesh."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.knative.sampling import (
    AGAIN_FIRST_S,
    AGAIN_LAST_S,
    Load,
    MeshMode,
    Pod,
    Route,
    extrapolate,
    plan,
    sample_size,
)

NOW, WINDOW = 1000.0, 60.0


@pytest.mark.parametrize(
    ("population", "size"),
    [
        (-1, 0),
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 4),
        (10, 7),
        (20, 9),
        (50, 12),
        (100, 14),
        (1000, 16),
    ],
)
def test_knatives_sample_sizes(population: int, size: int) -> None:
    assert sample_size(population) == size


def pods(old: int, young: int) -> list[Pod]:
    return [Pod(f"old-{i}", NOW - WINDOW - i) for i in range(old)] + [
        Pod(f"young-{i}", NOW - WINDOW + 1 + i) for i in range(young)
    ]


@given(st.integers(0, 60), st.integers(0, 60), st.integers())
def test_old_pods_come_first_and_nobody_twice(old: int, young: int, seed: int) -> None:
    order, size = plan(pods(old, young), WINDOW, NOW, Random(seed).shuffle)
    assert size == sample_size(old + young)
    assert all(name.startswith("old") for name in order[:old])
    assert sorted(order) == sorted(pod.address for pod in pods(old, young))


def test_the_choice_within_an_age_is_random() -> None:
    """Of too many old pods always others; of the young ones too, when they are needed to fill up."""
    many_old = {plan(pods(50, 5), WINDOW, NOW, Random(seed).shuffle).order[0] for seed in range(30)}
    few_old = {plan(pods(2, 50), WINDOW, NOW, Random(seed).shuffle).order[2] for seed in range(30)}
    assert len(many_old) > 5
    assert len(few_old) > 5


def test_extrapolates_from_the_sample_to_all() -> None:
    assert extrapolate([Load(2, 10), Load(4, 20)], 10) == Load(30, 150)
    assert extrapolate([Load(2, 10)], 1) == Load(2, 10)


def test_modes_that_are_fixed() -> None:
    assert Route(MeshMode.DISABLED).direct(NOW)
    assert not Route(MeshMode.ENABLED).direct(NOW)
    assert not Route(MeshMode.ENABLED).may_fall_back


def test_after_a_mesh_error_the_pods_are_tried_again_ever_later() -> None:
    route = Route(MeshMode.AUTO)
    assert route.direct(NOW)
    assert route.may_fall_back
    route.pods_refused(NOW)
    assert not route.direct(NOW + AGAIN_FIRST_S - 1)
    assert route.direct(NOW + AGAIN_FIRST_S)
    for _ in range(10):
        route.pods_refused(NOW)
    assert not route.direct(NOW + AGAIN_LAST_S - 1)
    assert route.direct(NOW + AGAIN_LAST_S)
    route.pods_answered()
    assert route.direct(NOW)
    route.pods_refused(NOW)
    assert route.direct(NOW + AGAIN_FIRST_S)
