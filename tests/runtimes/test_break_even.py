"""The learned threshold: it is where the two lines cross, follows the load, and never locks itself in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.vllm_pd.break_even import FIRST, LEAST, MOST, BreakEven


def feed(
    even: BreakEven, here: tuple[float, float], elsewhere: tuple[float, float], count: int, noise: float = 0.0
) -> None:
    """Prompts of all lengths, each going where the threshold says; both ways take what the lines say."""
    chosen = random.Random(7)
    for _ in range(count):
        tokens = int(2 ** chosen.uniform(4, 13))
        away = tokens >= even.needed(tokens)
        start, slope = elsewhere if away else here
        even.took(away, tokens, (start + slope * tokens) * (1 + noise * chosen.uniform(-1, 1)))


def test_until_both_ways_are_known() -> None:
    even = BreakEven()
    assert even.threshold == FIRST
    for tokens in range(16, 200, 10):
        even.took(False, tokens, tokens * 1e-3)
    assert even.threshold == FIRST
    even.took(True, 500, 0.1)
    assert even.threshold == FIRST


@given(st.floats(0.01, 0.5), st.floats(1e-4, 1e-2), st.floats(0.01, 0.9), st.floats(0.0, 0.2))
def test_it_is_where_the_lines_cross(start: float, slope: float, share: float, noise: float) -> None:
    """Elsewhere costs `start` more and `share` as much a token."""
    even = BreakEven()
    feed(even, (0.0, slope), (start, share * slope), 2000, noise)
    crossing = min(MOST, max(LEAST, start / (slope * (1 - share))))
    # What a wrong threshold costs is the distance of the lines there, not the distance of the thresholds.
    cost = abs(even.threshold - crossing) * slope * (1 - share)
    assert cost <= (noise + 0.02) * (start + slope * (crossing + even.threshold))


def test_it_follows_a_load_that_changes() -> None:
    even = BreakEven()
    feed(even, (0.0, 1e-3), (0.2, 1e-4), 1000)
    assert 200 <= even.threshold <= 250
    feed(even, (0.0, 1e-3), (2.0, 1e-4), 1000)  # prefill engines have a queue now
    assert 2000 <= even.threshold <= 2500
    feed(even, (0.0, 1e-3), (0.2, 1e-4), 1000)
    assert 200 <= even.threshold <= 250


def test_a_way_that_looked_bad_is_tried_again() -> None:
    even = BreakEven()
    feed(even, (0.0, 1e-3), (60.0, 1e-3), 500)
    assert even.threshold == MOST
    feed(even, (0.0, 1e-3), (0.1, 1e-4), 8000)
    assert even.threshold < 1000


def test_a_given_threshold_is_kept() -> None:
    even = BreakEven(64)
    feed(even, (0.0, 1e-3), (9.0, 1e-3), 200)
    assert even.threshold == 64
    assert {even.needed(tokens) for tokens in range(1, 500)} == {64}


def test_times_that_make_no_sense_are_left_out() -> None:
    even = BreakEven()
    for tokens in range(16, 600, 20):
        even.took(True, tokens, -1.0)
        even.took(False, tokens, 0.0)
    assert even.threshold == FIRST


def test_what_it_would_take_here() -> None:
    even = BreakEven()
    assert even.here_s(1000) is None
    feed(even, (0.02, 1e-3), (0.2, 1e-4), 1000)
    assert even.here_s(3000) == pytest.approx(3.02, rel=0.02)
    assert BreakEven(64).here_s(1000) is None


@pytest.mark.parametrize("tokens", [100, 5000])
def test_one_length_alone_says_nothing_of_others(tokens: int) -> None:
    even = BreakEven()
    for _ in range(100):
        even.took(True, tokens, 0.1)
        even.took(False, tokens, 0.2)
    assert even.threshold == FIRST
