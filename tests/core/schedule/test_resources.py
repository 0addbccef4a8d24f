"""Arithmetic of resources is written out for speed: no field may be forgotten."""

from __future__ import annotations

import pytest

from kserve_ext.core.facts import Resources


@pytest.mark.parametrize("field", Resources._fields)
def test_every_field_counts(field: str) -> None:
    one, none = Resources(**{field: 1}), Resources()
    assert none.fits(one)
    assert not one.fits(none)
    assert one.plus(one) == Resources(**{field: 2})
    assert one.minus(one) == none
