"""Lines: exact where samples lie on one, and none where they tell nothing of a slope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.kv_line import Line


@given(
    st.floats(0.01, 10),
    st.floats(0.01, 10),
    st.lists(st.tuples(st.integers(0, 100), st.floats(0.1, 1)), min_size=2, max_size=20),
)
def test_samples_on_a_line(start: float, slope: float, samples: list[tuple[int, float]]) -> None:
    line = Line()
    for x, scale in samples:
        line.add(x, start + slope * x, scale)
        line.fade(0.9)
    fit = line.fit()
    weights = [0.9**age / scale**2 for age, (_, scale) in enumerate(reversed(samples))]
    mean = sum(w * x for w, (x, _) in zip(weights, reversed(samples), strict=True)) / sum(weights)
    spread = sum(w * (x - mean) ** 2 for w, (x, _) in zip(weights, reversed(samples), strict=True))
    if spread / sum(weights) > 0.02 * mean**2:
        assert fit == pytest.approx((start, slope), rel=1e-6, abs=1e-6)
    elif spread / sum(weights) < 0.005 * mean**2:
        assert fit is None


def test_nearer_samples_pull_more() -> None:
    line = Line()
    line.add(1, 1.0, 1.0)
    line.add(3, 3.0, 1.0)
    line.fade(0.1)
    line.add(3, 5.0, 1.0)
    fit = line.fit()
    assert fit is not None
    assert fit[0] + 3 * fit[1] == pytest.approx((5.0 + 0.1 * 3.0) / 1.1)
    assert line.count == pytest.approx(1.2)
    assert Line().fit() is None


def test_through_zero() -> None:
    line = Line()
    line.add(2, 5.0, 1.0)
    line.add(4, 9.0, 1.0)
    assert line.through_zero() == pytest.approx((2 * 5 + 4 * 9) / (4 + 16))
