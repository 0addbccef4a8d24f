"""The receiver's account: equal to a set of rows that is struck off, and nothing else is expected."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.kv_landing import LandingPlan


@given(
    st.integers(1, 3),
    st.lists(st.integers(0, 9), unique=True, max_size=8),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10), st.integers(0, 4), st.booleans()), max_size=30),
)
def test_it_equals_a_set_of_rows(
    layers: int, targets: list[int], writes: list[tuple[int, int, int, bool]]
) -> None:
    landing = LandingPlan(layers, targets)
    left = {(layer, block) for layer in range(layers) for block in targets}
    bad: set[int] = set()
    for layer, target, count, broken in writes:
        rows = {(layer, block) for block in range(target, target + count)}
        expected = bool(rows) and rows <= left
        assert landing.expects(layer, target, count) == expected
        if expected:
            landing.landed(layer, target, count, [target] if broken else [])
            left -= rows
            bad |= {target} if broken else set()
        assert landing.whole == (not left and not bad)
        assert landing.broken_blocks() == bad | {block for _, block in left}


def test_broken_and_missing_blocks_are_named() -> None:
    landing = LandingPlan(2, [5, 6, 7])
    landing.landed(0, 5, 2)
    landing.landed(1, 5, 2, bad=[6])
    assert not landing.whole
    assert landing.broken_blocks() == {6, 7}
