"""The rate limit: a burst at once, then never faster than the rate, in the order of asking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.token_bucket import TokenBucket


def test_a_burst_goes_at_once_and_the_rest_is_spread() -> None:
    bucket = TokenBucket(10.0, 3)
    assert [bucket.take(5.0) for _ in range(5)] == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2])
    assert bucket.take(5.1) == pytest.approx(0.2)
    assert bucket.take(60.0) == 0.0


@given(
    st.floats(0.5, 100.0),
    st.integers(1, 20),
    st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60),
)
def test_never_faster_than_the_rate_beyond_the_burst(qps: float, burst: int, gaps: list[float]) -> None:
    bucket = TokenBucket(qps, burst)
    now, leaves = 100.0, []
    for gap in gaps:
        now += gap
        leaves.append(now + bucket.take(now))
    assert leaves == sorted(leaves)
    for first in range(len(leaves)):
        for last in range(first, len(leaves)):
            count = last - first + 1
            assert count <= burst + qps * (leaves[last] - leaves[first]) + 1e-6 * count + 1e-3


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    bucket = TokenBucket(1.0, 1)
    assert bucket.take(10.0) == 0.0
    assert bucket.take(9.0) == 1.0
    assert bucket.take(10.0) == 2.0


def test_who_would_have_to_wait_takes_nothing() -> None:
    bucket = TokenBucket(2.0, 1)
    assert [bucket.take_now(10.0) for _ in range(3)] == [0.0, 0.5, 0.5]
    assert bucket.take_now(10.5) == 0.0


@pytest.mark.parametrize(("qps", "burst"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_a_rate_that_lets_nothing_through_is_refused(qps: float, burst: int) -> None:
    with pytest.raises(ValueError):
        TokenBucket(qps, burst)
