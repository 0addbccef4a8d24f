"""The three timeouts, from the cases of Knative's pkg/http/handler/timeout_test.go."""

from __future__ import annotations

import pytest

from kserve_ext.core.knative.timeouts import IDLE, IN_TIME, RESPONSE_START, TOTAL, Timeouts


@pytest.mark.parametrize(
    ("timeouts", "written", "now", "passed"),
    [
        (Timeouts(10), 0.0, 109.9, IN_TIME),
        (Timeouts(10), 0.0, 110.0, TOTAL),
        (Timeouts(10), 109.9, 110.0, TOTAL),
        (Timeouts(20, response_start_s=7), 0.0, 106.9, IN_TIME),
        (Timeouts(20, response_start_s=7), 0.0, 107.0, RESPONSE_START),
        (Timeouts(20, response_start_s=7), 106.9, 119.9, IN_TIME),
        (Timeouts(20, response_start_s=7), 106.9, 120.0, TOTAL),
        (Timeouts(20, idle_s=5), 0.0, 104.9, IN_TIME),
        (Timeouts(20, idle_s=5), 0.0, 105.0, IDLE),
        (Timeouts(20, idle_s=5), 104.0, 108.9, IN_TIME),
        (Timeouts(20, idle_s=5), 104.0, 109.0, IDLE),
        (Timeouts(20, 5, 7), 0.0, 105.0, RESPONSE_START),
        (Timeouts(5, 7, 7), 0.0, 105.0, TOTAL),
    ],
)
def test_which_timeout_has_passed(timeouts: Timeouts, written: float, now: float, passed: str) -> None:
    assert timeouts.passed(100.0, written, now) == passed
