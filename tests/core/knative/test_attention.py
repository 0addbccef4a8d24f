"""Attention: the clock that stands still while nobody looks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.knative.attention import AWAY_S, CATCH_UP_S, Attention
from kserve_ext.core.knative.collection import Collection
from kserve_ext.core.knative.sampling import Load

NOW = 1_700_000_000.0


def test_it_is_the_wall_clock_as_long_as_somebody_looks() -> None:
    clock = Attention()
    for step in range(100):
        assert clock.now(NOW + step * AWAY_S) == NOW + step * AWAY_S
        assert not clock.catching_up


@pytest.mark.parametrize("away_s", [AWAY_S + 0.1, 30.0, 86_400.25])
def test_it_stands_still_for_the_time_away_and_until_what_piled_up_is_read(away_s: float) -> None:
    clock = Attention()
    clock.now(NOW)
    back = NOW + away_s
    stood = clock.now(back), clock.catching_up
    assert stood == (NOW, True)
    assert clock.now(back + CATCH_UP_S / 2) == NOW
    ends = NOW + math.ceil(away_s + CATCH_UP_S)
    goes_on = clock.now(ends), clock.catching_up
    assert goes_on == (NOW + 1, False)
    assert clock.now(ends + 0.5) == NOW + 1.5
    assert clock.missed_s == math.ceil(away_s + CATCH_UP_S) - 1


def test_away_again_while_it_catches_up_is_one_absence() -> None:
    clock = Attention()
    clock.now(NOW)
    clock.now(NOW + 10)
    assert clock.now(NOW + 20) == NOW
    assert clock.catching_up
    assert clock.now(NOW + 21) == NOW + 1
    assert clock.missed_s == 20


def test_a_wall_clock_that_is_put_back_moves_nothing() -> None:
    clock = Attention()
    clock.now(NOW)
    assert clock.now(NOW - 3600) == NOW
    assert clock.now(NOW - 3599) == NOW + 1
    assert clock.now(NOW - 3598.5) == NOW + 1.5


@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=30))
def test_it_never_goes_back_and_never_faster_than_the_wall(steps: list[float]) -> None:
    clock = Attention()
    wall = NOW
    before = clock.now(wall)
    for step in steps:
        wall += step
        now = clock.now(wall)
        # A second more than the wall where it goes on: it does so in the second after that in which it stood.
        assert before <= now <= min(before + min(step, AWAY_S) + 1, wall)
        before = now


def test_averages_are_after_an_absence_what_they_were_before() -> None:
    clock = Attention()
    load = Collection(60, 6, "linear", scraped=True)
    for second in range(60):
        load.record(Load(5, 5), clock.now(NOW + second))
    before = load.averages("concurrency", clock.now(NOW + 59))
    assert load.averages("concurrency", clock.now(NOW + 59 + 45)) == before
    for second in (46, 47, 48):
        now = clock.now(NOW + 59 + second)
        load.record(Load(5, 5), now)
        assert load.averages("concurrency", now) == before
