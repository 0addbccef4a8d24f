"""Pauses after failures: doubled, bounded, spread."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.backoff import pause_s


def test_the_pause_doubles_up_to_its_bound() -> None:
    assert [pause_s(n, 0.5, 3.0, 1.0) for n in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@given(st.integers(1, 10**6), st.floats(0.0, 1.0))
def test_it_is_never_below_half_nor_above_the_bound(failures: int, chance: float) -> None:
    full = pause_s(failures, 0.01, 60.0, 1.0)
    assert full / 2 <= pause_s(failures, 0.01, 60.0, chance) <= full <= 60.0
