"""The rules of a prefill/decode group, and the delays after setbacks."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.dispatch.group import Wish, agree
from kserve_ext.core.dispatch.setbacks import LONG_S, MOST_S, Setbacks
from kserve_ext.core.facts import Role
from kserve_ext.core.ids import RevisionKey


def wish(
    role: Role, number: int, most: int = 0, generation: int = 1, failed: bool = False, routed: bool = False
) -> Wish:
    return Wish(RevisionKey(f"ns/{role}-{generation}"), role, generation, number, most, failed, routed)


def counts(*wishes: Wish, ratio: tuple[int, int, int, int] | None = None) -> list[int]:
    goals = agree(wishes, ratio)
    return [goals[w.key] for w in wishes]


def test_both_or_neither() -> None:
    assert counts(wish("decode", 0), wish("prefill", 0)) == [0, 0]
    assert counts(wish("decode", 2), wish("prefill", 0)) == [2, 1]
    assert counts(wish("decode", 0), wish("prefill", 2)) == [1, 2]
    assert counts(wish("prefill", 2)) == [0], "prefill alone serves nobody"
    assert counts(wish("decode", 2)) == [2]


def test_a_role_that_can_not_work_is_left_alone() -> None:
    assert counts(wish("decode", 2), wish("prefill", 0, failed=True)) == [2, 0]
    assert counts(wish("decode", 0, failed=True), wish("prefill", 2)) == [0, 0]


def test_ratio_and_max_scale() -> None:
    assert counts(wish("decode", 8), wish("prefill", 1), ratio=(1, 4, 2, 1)) == [8, 2]
    assert counts(wish("decode", 1), wish("prefill", 6), ratio=(1, 4, 2, 1)) == [3, 6]
    assert counts(wish("decode", 8), wish("prefill", 1, most=1), ratio=(1, 4, 2, 1)) == [8, 1]


def test_in_a_roll_out_the_newest_revision_of_a_role_is_raised() -> None:
    old, new = wish("prefill", 0, generation=1), wish("prefill", 0, generation=2)
    assert counts(wish("decode", 2), old, new) == [2, 0, 1]


def test_in_a_roll_out_the_revision_with_the_traffic_is_raised_until_it_has_moved() -> None:
    """The newest one may never be ready: it does not count as the group's prefill."""
    old, new = wish("prefill", 0, generation=1, routed=True), wish("prefill", 1, generation=2)
    assert counts(wish("decode", 2), old, new) == [2, 1, 1]
    assert counts(wish("decode", 0), old, new) == [0, 0, 1], "a roll-out at zero wakes nobody"


@given(st.integers(0, 30), st.integers(0, 30), st.tuples(*[st.integers(1, 5)] * 4))
def test_the_ratio_holds_whenever_its_bounds_can(d: int, p: int, ratio: tuple[int, int, int, int]) -> None:
    least_p, least_d, most_p, most_d = ratio
    if least_p * most_d > most_p * least_d:
        return
    goal_d, goal_p = counts(wish("decode", d), wish("prefill", p), ratio=ratio)
    assert (goal_d == 0) == (goal_p == 0)
    assert goal_d >= d
    assert goal_p >= p
    if goal_d:
        assert goal_p <= math.ceil(goal_d * most_p / most_d)


def test_setbacks_double_up_to_a_bound_and_success_clears_them() -> None:
    setbacks, now, waits = Setbacks(), 0.0, []
    for _ in range(9):
        setbacks.start_failed("it ended", False, now)
        setbacks.start_failed("so did its twin", False, now)
        waits.append(setbacks.retry_at - now)
        now = setbacks.retry_at
    assert [round(w, 6) for w in waits[:4]] == [0.2, 0.4, 0.8, 1.6]
    assert round(waits[-1], 6) == MOST_S
    setbacks.succeeded()
    assert (setbacks.reason, setbacks.retry_at) == ("", 0.0)


def test_a_permanent_failure_is_tried_again_only_on_new_demand_and_late() -> None:
    setbacks = Setbacks()
    setbacks.start_failed("bad flag", True, 5.0)
    setbacks.demanded(5.0 + LONG_S / 2)
    after_half = setbacks.permanent
    setbacks.demanded(5.0 + LONG_S)
    assert (after_half, setbacks.permanent, setbacks.reason) == (True, False, "bad flag")
