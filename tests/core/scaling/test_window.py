"""Windows: Knative's own aggregation cases, and a naive recomputation of everything ever written."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.scaling.window import (
    LinearWindow,
    MaxWindow,
    MetricWindows,
    WeightedWindow,
    panic_window_s,
)

T0 = 1_700_000_000.25  # not on a second, as real times are


def filled(values: list[float], window_s: float = 5, start: float = T0) -> LinearWindow:
    window = LinearWindow(window_s)
    for second, value in enumerate(values):
        window.record(start + second, value)
    return window


def test_the_first_value_is_not_diluted_by_the_empty_rest() -> None:
    assert filled([1]).average(T0) == 1


@pytest.mark.parametrize(
    ("at", "want"),
    [(4, 3), (3.6, 3), (6, (15 - 1 - 2) / 3), (8, 5), (9, 0), (10, 0)],
    ids=["full", "now lags", "short hole", "one left", "whole window", "long hole"],
)
def test_linear_window_of_five_seconds(at: float, want: float) -> None:
    assert filled([1, 2, 3, 4, 5]).average(T0 + at) == want


def test_write_after_a_short_hole_counts_the_hole_as_zero() -> None:
    window = filled([1, 2, 3, 4, 5])
    window.record(T0 + 6, 91)
    assert window.average(T0 + 6) == (15 - 1 - 2 + 91) / 5


def test_holes_drop_what_they_push_out() -> None:
    window = filled([1, 2, 3, 4, 5])
    window.record(T0 + 8, 2)
    assert window.average(T0 + 8) == 7 / 5


def test_silence_for_a_window_starts_anew_and_earlier_times_extend_it() -> None:
    window = filled([1, 2, 3, 4, 5])
    now = T0 + 60
    window.record(now, 1984)
    assert window.average(now) == 1984
    window.record(now - 3, 4)
    assert window.average(now) == (4 + 1984) / 4
    window.record(now + 1, 5)
    assert window.average(now + 1) == (4 + 1984 + 5) / 5
    window.record(now - 2, 10)
    assert window.average(now + 1) == (4 + 10 + 1984 + 5) / 5
    window.record(now - 5, 10)  # a second too early
    assert window.average(now + 1) == (4 + 10 + 1984 + 5) / 5


def test_values_of_one_second_are_added_in_any_order() -> None:
    window = LinearWindow(60)
    start = math.floor(T0)
    for step, second in enumerate([0, 3, 2, 1, 4]):
        for value in range(5):
            window.record(start + second, step + value)
    assert window.average(start + 4) == 100 / 5


def test_descending_writes() -> None:
    window = LinearWindow(5)
    for second in range(8, -1, -1):
        window.record(T0 + second, 5)
    assert window.average(T0 + 5) == 5


def test_resize_up_then_down() -> None:
    window = filled([1, 2, 3, 4, 5, 6])
    assert window.average(T0 + 5) == 20 / 5
    window.resize(10, T0 + 5)
    assert window.average(T0 + 5) == 20 / 5
    window.record(T0 + 6, 7)
    assert window.average(T0 + 6) == 4.5
    window.resize(4, T0 + 6)
    assert window.average(T0 + 6) == (27 - 2 - 3) / 4


def test_resize_after_silence_forgets() -> None:
    window = filled([19.82])
    window.resize(10, T0 + 60)
    assert window.empty(T0)
    window.record(T0 + 60, 2)
    assert window.average(T0 + 60) == 2


def test_granularity_of_three_seconds() -> None:
    start = 3_000_000.0
    window = LinearWindow(5, granularity_s=3)  # two buckets
    for second, value in enumerate([10, 2, 3, 4, 5, 6, 7]):
        window.record(start + second, value)
    assert window.average(start + 6) == (15 + 7) / 2  # the first 15 are pushed out
    window.resize(10, start + 6)
    window.record(start + 9.3, 42)
    assert window.average(start + 9) == rounded((15 + 7 + 42) / 3)
    window.resize(4, start + 9)
    assert window.average(start + 9) == (7 + 42) / 2


def rounded(value: float) -> float:
    return math.floor(Fraction(value * 10**6) + Fraction(1, 2)) / 10**6


def test_rounds_to_six_decimals() -> None:
    assert filled([3.6e-17]).average(T0) == 0
    assert filled([-3.6e-17]).average(T0) == 0
    assert filled([1.23456789]).average(T0) == 1.234568
    assert filled([1.2345674]).average(T0) == 1.234567
    assert filled([0.5e-6]).average(T0) == 1e-6
    assert filled([-0.5e-6]).average(T0) == -1e-6
    assert filled([12345]).average(T0) == 12345


def test_empty_only_after_more_than_a_window() -> None:
    window = LinearWindow(5)
    assert window.empty(T0)
    window.record(T0, 1)
    assert not window.empty(T0 + 5)
    assert window.empty(T0 + 6)


@pytest.mark.parametrize(("buckets", "want"), [(60, 0.2), (100, 0.2), (40, 0.20567), (6, 0.78456)])
def test_weight_by_window(buckets: int, want: float) -> None:
    assert WeightedWindow(buckets).weight == pytest.approx(want, abs=5e-6)


def test_weighted_average_favours_the_newest_and_decays_with_silence() -> None:
    window = WeightedWindow(6)
    weight = window.weight
    for second, value in enumerate([10, 10, 5, 5]):
        window.record(T0 + second, value)
    want = sum(v * weight * (1 - weight) ** age for age, v in enumerate([5, 5, 10, 10]))
    assert window.average(T0 + 3) == pytest.approx(want)
    assert window.average(T0 + 5) == pytest.approx(want * (1 - weight) ** 2)
    assert window.average(T0 + 9.9) == 0
    window.resize(60, T0 + 5)
    assert window.weight == 0.2


@pytest.mark.parametrize(
    ("stable", "percent", "want"),
    [(60, 10, 6), (6, 10, 1), (6, 1, 1), (25, 10, 3), (60, 100, 60), (64, 10, 6)],
)
def test_panic_window_is_whole_seconds(stable: float, percent: float, want: float) -> None:
    assert panic_window_s(stable, percent) == want


def test_the_two_windows_of_a_metric() -> None:
    windows = MetricWindows(60, 6)
    assert windows.empty(T0)
    for second in range(60):
        windows.record(T0 + second, 1 if second < 54 else 7)
    assert windows.averages(T0 + 59) == ((54 + 42) / 60, 7)
    windows.resize(60, 12, T0 + 59)
    assert windows.averages(T0 + 59).panic == 7
    assert MetricWindows(6, 6, "weighted-exponential").averages(T0) == (0, 0)


# Quarters are exact in binary, so that both ways of adding give the same bits.
writes = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 400).map(lambda quarter: quarter / 4)), max_size=40
)


@given(writes, st.integers(1, 12), st.integers(0, 60))
def test_linear_equals_naive_recomputation(
    history: list[tuple[int, float]], window_s: int, read: int
) -> None:
    window = LinearWindow(window_s)
    accepted: list[tuple[int, float]] = []
    first = last = None
    for second, value in history:
        window.record(second + 0.5, value)
        if last is not None and second <= last - window_s:
            continue
        if first is None or last is None or second >= last + window_s:
            first = last = second
            accepted = []
        first, last = min(first, second), max(last, second)
        accepted.append((second, value))
    if first is None or last is None or read - last >= window_s:
        assert window.average(read) == 0
        return
    end = max(last, read)
    total = sum(value for second, value in accepted if end - window_s < second <= end)
    valid = min(last - first + 1, window_s - (end - last))
    assert window.average(read) == rounded(total / valid)


@given(writes, st.integers(1, 12), st.integers(0, 60))
def test_memory_is_bounded_by_the_window(history: list[tuple[int, float]], window_s: int, read: int) -> None:
    window = LinearWindow(window_s)
    for second, value in history:
        window.record(second, value)
        assert len(window._sums) <= window_s


def test_max_window_steps_begin_at_whole_multiples_and_a_part_counts_as_one() -> None:
    window = MaxWindow(5, 2)  # three steps
    assert window.record(0, 9) == 9
    assert window.record(1.9, 4) == 9
    assert window.record(5.9, 3) == 9
    assert window.record(6, 2) == 3


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), min_size=1, max_size=40), st.integers(1, 10)
)
def test_max_window_equals_naive_recomputation(steps: list[tuple[int, int]], count: int) -> None:
    window = MaxWindow(count * 2, 2)
    history: list[tuple[int, int]] = []
    step = 0
    for ahead, value in steps:
        step += ahead
        history.append((step, value))
        got = window.record(step * 2 + 1.5, value)
        assert got == max(v for s, v in history if step - s < count)
