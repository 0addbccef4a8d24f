"""Reports of one revision; cases of Knative's concurrency_reporter_test.go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.knative.request_stats import Report, RequestStats


def stats(*events: tuple[float, int]) -> RequestStats:
    made = RequestStats(events[0][0])
    for at, change in events:
        made.enter(at) if change > 0 else made.leave(at)
    return made


def test_in_and_out_at_once_is_told_with_the_first_message_only() -> None:
    assert stats((0.0, 1), (0.0, -1)).report(1.0) == Report(0.0, 0.0, True)


def test_two_at_once() -> None:
    made = stats((0.0, 1), (0.0, 1), (0.0, 1))
    assert made.report(1.0) == Report(2.0, 2.0, False)
    assert made.report(2.0) == Report(3.0, 0.0, False)


def test_interleaved_requests_over_two_units() -> None:
    """One all the time, another in the second half: 1.5 on average, of which 1 was told before."""
    made = stats((0.0, 1), (1.0, 1), (2.0, -1), (2.0, -1))
    assert made.report(2.0) == Report(0.5, 1.0, False)


def test_a_quiet_period_ends_it() -> None:
    made = stats((0.0, 1), (0.5, -1))
    assert made.report(1.0) == Report(0.0, 0.0, False)
    assert made.report(2.0) == Report(0.0, 0.0, True)
    assert made.under_way == 0


def test_a_first_request_that_was_not_told_is_in_the_first_report() -> None:
    made = RequestStats(0.0, told=False)
    made.enter(0.0)
    assert made.report(0.5) == Report(1.0, 1.0, False)
    assert made.report(1.0) == Report(1.0, 0.0, False)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=20))
def test_the_average_is_the_time_under_way(spans: list[tuple[float, float]]) -> None:
    spans = [(min(span), max(span)) for span in spans]
    made = RequestStats(0.0)
    for at, change in sorted(
        [(b, 1) for b, _ in spans] + [(e, -1) for _, e in spans], key=lambda x: (x[0], -x[1])
    ):
        made.enter(at) if change > 0 else made.leave(at)
    report = made.report(10.0)
    expected = sum(e - b for b, e in spans) / 10.0
    assert report.concurrency == pytest.approx(max(0.0, expected - 1.0), abs=1e-9)
    assert report.arrivals == len(spans) - 1
    assert made.under_way == 0
