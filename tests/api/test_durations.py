"""Durations: what Go's parser accepts, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.api.durations import nanoseconds, seconds


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0", 0),
        ("-0", 0),
        ("0s", 0),
        ("5s", 5),
        ("30s", 30),
        ("1478s", 1478),
        ("-5s", -5),
        ("+5s", 5),
        ("5.0s", 5),
        ("5.s", 5),
        (".5s", 0.5),
        ("1.5m", 90),
        ("1h15m30.5s", 4530.5),
        ("3h30m", 12600),
        ("10ms", 0.01),
        ("12us", 12e-6),
        ("12µs", 12e-6),
        ("12μs", 12e-6),
        ("11ns", 11e-9),
        ("0.100000000000000000000h", 360),
        ("39h9m14.425s", 140954.425),
        ("1s1s", 2),
    ],
)
def test_accepted(text: str, want: float) -> None:
    assert seconds(text) == want


@pytest.mark.parametrize(
    "text", ["", "-", "+", "s", ".", "-.", ".s", "+.s", "1d", "5 s", " 5s", "5s ", "1e3s", "--5s", "abc"]
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write a number with a unit"):
        nanoseconds(text)


@pytest.mark.parametrize("text", ["3000", "60", "1.5", "-3"])
def test_a_missing_unit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="has no unit"):
        nanoseconds(text)


def test_too_long() -> None:
    assert nanoseconds("9223372036854775807ns") == 2**63 - 1
    with pytest.raises(ValueError, match="292 years"):
        nanoseconds("9223372036854775808ns")


@given(st.integers(0, 2000), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999_999_999))
def test_parts_add_up(hours: int, minutes: int, secs: int, nanos: int) -> None:
    text = f"{hours}h{minutes}m{secs}.{nanos:09d}s"
    assert nanoseconds(text) == ((hours * 60 + minutes) * 60 + secs) * 10**9 + nanos
