"""Durations in buckets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.histogram import BOUNDS_S, Histogram


@given(st.lists(st.floats(0.0, 100.0) | st.sampled_from(BOUNDS_S)))
def test_each_bucket_has_all_up_to_its_bound(observed: list[float]) -> None:
    made = Histogram()
    for seconds in observed:
        made.observe(seconds)
    expected: list[tuple[str, float]] = [
        (str(bound), sum(seconds <= bound for seconds in observed)) for bound in BOUNDS_S
    ]
    assert made.buckets == [*expected, ("+Inf", len(observed))]
    assert abs(made.sum_s - sum(observed)) < 1e-6
