"""Properties of the KV transfer planner: every block of every layer once, never more than the credit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.kv_plan import LandingPlan, PushPlan, Span, Write, coalesce


def test_neighbours_on_both_sides_become_one_span() -> None:
    assert list(coalesce([4, 5, 6, 9], [1, 2, 3, 4], 8)) == [Span(4, 1, 3), Span(9, 4, 1)]
    assert list(coalesce([4, 5, 6], [1, 2, 5], 8)) == [Span(4, 1, 2), Span(6, 5, 1)]
    assert list(coalesce([4, 5, 6], [1, 2, 3], 2)) == [Span(4, 1, 2), Span(6, 3, 1)]
    assert list(coalesce([], [], 1)) == []


blocks = st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=16)


@st.composite
def transfers(draw: st.DrawFn) -> tuple[list[int], list[int], int, int, int]:
    sources = draw(blocks)
    skip = draw(st.integers(0, len(sources)))
    targets = draw(
        st.lists(st.integers(50, 90), unique=True, min_size=len(sources) - skip, max_size=len(sources) - skip)
    )
    return sources, targets, skip, draw(st.integers(1, 4)), draw(st.integers(1, 6))


@settings(max_examples=200)
@given(transfers(), st.data())
def test_each_block_is_written_once_and_never_beyond_the_credit(
    transfer: tuple[list[int], list[int], int, int, int], data: st.DataObject
) -> None:
    sources, targets, skip, layers, limit = transfer
    plan = PushPlan(layers)
    landing = LandingPlan(layers, targets)
    steps = [*data.draw(st.lists(st.integers(0, len(sources)), max_size=4)), len(sources)]
    reserve_at = data.draw(st.integers(0, len(steps) - 1))
    written: list[tuple[int, int, int]] = []
    for number, count in enumerate(sorted(steps)):
        if number == reserve_at:
            plan.reserved(skip, targets)
        plan.computed(sources, count, final=number == len(steps) - 1)
        credit = data.draw(st.integers(0, 12))
        writes = plan.take(credit, limit)
        assert sum(write.blocks for write in writes) <= credit
        written += _apply(writes, landing)
        assert number >= reserve_at or not writes
    rounds = 0
    while not plan.finished:
        rounds += 1
        assert rounds < 500
        written += _apply(plan.take(data.draw(st.integers(1, 8)), limit), landing)
    expected = [
        (layer, source, target)
        for layer in range(layers)
        for source, target in zip(sources[skip:], targets, strict=True)
    ]
    assert sorted(written) == sorted(expected)
    assert landing.whole
    assert not plan.short
    assert plan.take(100, limit) == []


def _apply(writes: list[Write], landing: LandingPlan) -> list[tuple[int, int, int]]:
    done = []
    for write in writes:
        assert landing.expects(write.layer, write.target, write.blocks)
        landing.landed(write.layer, write.target, write.blocks)
        assert not landing.expects(write.layer, write.target, write.blocks)
        done += [(write.layer, write.source + i, write.target + i) for i in range(write.blocks)]
    return done


def test_a_sender_that_computed_too_little_is_noticed() -> None:
    plan = PushPlan(1)
    plan.reserved(0, [1, 2, 3])
    plan.computed([7, 8], 2, final=True)
    assert plan.short
    plan.take(10, 10)
    assert plan.finished


def test_broken_and_missing_blocks_are_named() -> None:
    landing = LandingPlan(2, [5, 6, 7])
    landing.landed(0, 5, 2)
    landing.landed(1, 5, 2, bad=[6])
    assert not landing.whole
    assert landing.broken_blocks() == {6, 7}


def test_blocks_that_were_not_reserved_are_not_expected() -> None:
    landing = LandingPlan(1, [5, 6])
    assert not landing.expects(0, 6, 2)
    assert not landing.expects(1, 5, 1)
    assert not landing.expects(0, 5, 0)


def test_sources_may_change_between_steps() -> None:
    plan = PushPlan(1)
    plan.reserved(0, [1, 2])
    plan.computed([10], 1, final=False)
    assert plan.take(9, 9) == [Write(0, 10, 1, 1)]
    plan.computed([20, 21], 2, final=True)
    assert plan.take(9, 9) == [Write(0, 21, 2, 1)]


def test_misuse_is_refused() -> None:
    plan = PushPlan(1)
    plan.reserved(0, [1])
    with pytest.raises(ValueError, match="twice"):
        plan.reserved(0, [1])
    with pytest.raises(ValueError, match="more blocks"):
        plan.computed([1], 2, final=True)
