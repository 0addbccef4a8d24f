"""Averages against the sum over each request's own time."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.queue.request_stats import RequestStats

TIMES = st.integers(0, 40).map(lambda quarter: quarter / 4)
REQUESTS = st.lists(st.tuples(TIMES, TIMES, st.booleans()), max_size=12)


@given(REQUESTS)
def test_a_period_has_its_share_of_every_request(requests: list[tuple[float, float, bool]]) -> None:
    requests = [(min(a, b), max(a, b), proxied) for a, b, proxied in requests]
    events = [(begin, 1, proxied) for begin, _, proxied in requests]
    events += [(end, -1, proxied) for _, end, proxied in requests]
    events.sort(key=lambda event: (event[0], -event[1]))
    stats = RequestStats(0.0)
    for second in range(1, 11):
        while events and events[0][0] < second:
            at, kind, proxied = events.pop(0)
            (stats.enter if kind > 0 else stats.leave)(at, proxied)
        report = stats.report(float(second))
        for proxied_only, average, count in (
            (False, report.concurrency, report.arrivals),
            (True, report.proxied_concurrency, report.proxied_arrivals),
        ):
            counted = [r for r in requests if r[2] or not proxied_only]
            share = sum(max(0.0, min(end, second) - max(begin, second - 1)) for begin, end, _ in counted)
            assert math.isclose(average, share, abs_tol=1e-9)
            assert count == sum(second - 1 <= begin < second for begin, _, _ in counted)


def test_a_report_right_after_another_is_empty() -> None:
    stats = RequestStats(1.0)
    stats.enter(1.5, True)
    stats.report(2.0)
    assert stats.report(2.0) == (0.0, 0.0, 0, 0)
    assert stats.under_way == 1
