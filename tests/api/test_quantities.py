"""Quantities: Kubernetes' own forms, and exact arithmetic for every number of digits."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.api import quantities

AMOUNTS = [
    ("500m", Fraction(1, 2)),
    ("2", Fraction(2)),
    (2, Fraction(2)),
    (0.5, Fraction(1, 2)),
    ("0.1", Fraction(1, 10)),
    (".5", Fraction(1, 2)),
    ("5.", Fraction(5)),
    ("2Gi", Fraction(2 * 1024**3)),
    ("1.5Gi", Fraction(3 * 1024**3, 2)),
    ("1k", Fraction(1000)),
    ("1e3", Fraction(1000)),
    ("12E-1", Fraction(12, 10)),
    ("1E", Fraction(10**18)),
    ("+3M", Fraction(3_000_000)),
    ("-1", Fraction(-1)),
    ("100u", Fraction(1, 10_000)),
]


@pytest.mark.parametrize(("text", "amount"), AMOUNTS)
def test_forms(text: object, amount: Fraction) -> None:
    assert quantities.parse(text) == amount


@pytest.mark.parametrize(
    "text", ["", "Gi", "1 Gi", "1gi", "1K", "0x10", "1e", "--1", "1.2.3", "nan", True, None, [1]]
)
def test_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a quantity; write a number"):
        quantities.parse(text)


@given(st.integers(0, 10**12), st.sampled_from(["", "m", "k", "Ki", "M", "Mi", "G", "Gi"]))
def test_rounding_up_covers_the_amount_and_no_more(number: int, suffix: str) -> None:
    text = f"{number}{suffix}"
    exact = quantities.parse(text)
    for rounded, unit in (
        (quantities.milli(text), Fraction(1, 1000)),
        (quantities.mebibytes(text), Fraction(1024**2)),
    ):
        assert (rounded - 1) * unit < exact <= rounded * unit


@given(st.integers(0, 10**9))
def test_what_is_shown_is_read_back(number: int) -> None:
    assert quantities.milli(quantities.show_milli(number)) == number
    assert quantities.mebibytes(quantities.show_mebibytes(number)) == number


@given(st.text(max_size=12))
def test_any_text_is_read_exactly_or_refused(text: str) -> None:
    try:
        amount = quantities.parse(text)
    except ValueError:
        return
    assert quantities.up(amount) >= amount
