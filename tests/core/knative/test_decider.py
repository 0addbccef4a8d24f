"""Decider and Collection: Knative's MultiScaler and collector cases, and what a burst may and may not do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.knative.collection import Collection
from kserve_ext.core.knative.decider import FRESH_S, KEPT_S, Decider
from kserve_ext.core.knative.sampling import Load
from kserve_ext.core.scaling.decide import Observed, ScalingSpec, ScalingState, decide
from kserve_ext.core.scaling.window import Averages

NOW = 1_700_000_000.0
SPEC = ScalingSpec(target=7, total=10, capacity=10, target_burst_capacity=200, initial=1)


def decider(ready: int = 0, **changes: object) -> Decider:
    return Decider(replace(SPEC, **changes), ready, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tbc", "initial", "total", "excess"),
    [(42, 2, 25, 8), (-1, 1, 25, -1), (0, 1, 25, 0), (200, 1, 10, -190)],
)
def test_a_new_decider_knows_nothing_but_its_capacity(
    tbc: float, initial: int, total: float, excess: int
) -> None:
    new = decider(target_burst_capacity=tbc, initial=initial, total=total)
    assert (new.desired, new.excess_burst, new.panicking) == (-1, excess, False)


@pytest.mark.parametrize(("ready", "panicking"), [(0, False), (1, False), (2, True), (9, True)])
def test_with_more_than_one_pod_it_starts_in_panic(ready: int, panicking: bool) -> None:
    new = decider(ready)
    assert new.panicking is panicking
    new.tick(Averages(0, 0), ready, NOW)
    assert new.desired == (ready if panicking else 0)


def test_says_when_the_scale_changes_and_only_then() -> None:
    one = decider(1)
    assert one.tick(Averages(7, 7), 1, NOW)
    assert one.desired == 1
    assert not one.tick(Averages(7, 7), 1, NOW + 2)
    assert one.tick(Averages(14, 14), 1, NOW + 4)
    assert not one.tick(None, 1, NOW + 6)
    assert not one.tick(Averages(14, 14), None, NOW + 8)
    assert one.desired == 2
    assert one.averages == Averages(14, 14)


def test_says_when_the_excess_changes_its_sign() -> None:
    one = decider(3, target_burst_capacity=20)
    one.tick(Averages(14, 11), 3, NOW)
    assert one.excess_burst == -1
    assert not one.tick(Averages(14, 12), 3, NOW + 2)
    assert one.tick(Averages(14, 10), 3, NOW + 4)
    assert one.excess_burst == 0
    assert not one.tick(Averages(14, 9), 3, NOW + 6)


def test_at_zero_a_request_is_reason_to_tick_at_once() -> None:
    one = decider(0)
    assert decider(0).report("act-0", 1.0, NOW), "before the first tick, too"
    one.tick(Averages(0, 0), 0, NOW)
    assert not one.report("act-0", 0.0, NOW)
    assert one.report("act-0", 1.0, NOW + 1)
    assert one.tick(Averages(1, 1), 0, NOW + 1)
    assert (one.desired, one.panicking) == (1, False)


def test_what_the_wanted_pods_can_take_is_no_burst() -> None:
    one = decider(2)
    one.tick(Averages(14, 14), 2, NOW)
    assert not one.report("act-0", 11, NOW)
    assert not one.report("act-1", 9, NOW)
    assert one.report("act-1", 9.5, NOW)


def test_a_burst_counts_at_once_and_outlasts_the_next_tick() -> None:
    one = decider(1)
    one.tick(Averages(5, 5), 1, NOW)
    assert one.report("act-0", 31, NOW + 1)
    assert one.tick(Averages(5.5, 9), 1, NOW + 1)
    assert (one.desired, one.panicking) == (4, True)
    one.report("act-0", 0, NOW + 2)
    one.tick(Averages(5, 5), 1, NOW + 3)
    assert one.desired == 4
    one.tick(Averages(5, 5), 4, NOW + 1 + SPEC.stable_window_s + 1)
    assert (one.desired, one.panicking) == (2, False), "half of what is ready, a tick's most"


def test_a_tick_does_not_take_away_what_is_in_hand() -> None:
    one = decider(13)
    one.tick(Averages(90, 90), 13, NOW)
    assert not one.report("act-0", 90, NOW + 61)
    one.tick(Averages(53, 53), 13, NOW + 61)
    assert one.desired == 9, "the stable window lags behind"
    one.tick(Averages(10, 10), 9, NOW + 100)
    assert one.desired == 9
    one.tick(Averages(10, 10), 9, NOW + 122)
    assert one.desired == 4


def test_a_burst_stays_within_the_bounds() -> None:
    few = decider(1, max=3)
    few.tick(Averages(5, 5), 1, NOW)
    few.report("act-0", 1000, NOW)
    few.tick(Averages(5, 5), 1, NOW)
    assert few.desired == 3
    assert not few.report("act-0", 1000, NOW)
    many = decider(5, min=5)
    many.tick(Averages(5, 5), 5, NOW)
    assert not many.report("act-0", 50, NOW)


def test_nothing_is_decided_while_nothing_is_known() -> None:
    one = decider(0)
    assert one.report("act-0", 50, NOW)
    assert not one.tick(None, 0, NOW)
    assert one.desired == -1


def test_an_activator_that_fell_silent_does_not_count() -> None:
    one = decider(1)
    one.tick(Averages(5, 5), 1, NOW)
    assert not one.report("act-0", 9, NOW)
    assert one.report("act-1", 9, NOW)
    one.tick(Averages(5, 5), 1, NOW)
    assert not one.report("act-1", 19, NOW + FRESH_S + 0.1)


def test_what_a_dead_activator_held_is_not_counted_beside_its_successors() -> None:
    one = decider(15)
    for second in range(100):
        one.report("act-0", 100, NOW + second)
        one.tick(Averages(100, 100), 15, NOW + second)
    assert (one.desired, one.panicking) == (15, False)
    killed = NOW + 99.1
    assert not one.report("act-1", 1, killed + 0.1), "its clients come again"
    assert not one.report("act-1", 100, killed + 1.15)
    one.tick(Averages(100, 100), 15, killed + 1.2)
    assert (one.desired, one.panicking) == (15, False)


def test_what_one_that_hung_up_held_starts_nothing_and_takes_nothing_away() -> None:
    one = decider(13)
    one.tick(Averages(90, 90), 13, NOW)
    one.report("act-0", 90, NOW + 61)
    one.hung_up("act-0", NOW + 61.1)
    one.hung_up("nobody", NOW + 61.1)
    assert not one.report("act-1", 90, NOW + 61.2), "its clients are another's at once"
    one.tick(Averages(53, 53), 13, NOW + 61.2)
    assert (one.desired, one.panicking) == (9, True)
    assert one.report("act-0", 90, NOW + 61.4), "it has only connected anew"


def test_a_report_that_is_late_does_not_shrink_anything() -> None:
    one = decider(13)
    one.tick(Averages(90, 90), 13, NOW)
    one.report("act-0", 90, NOW + 61)
    one.tick(Averages(53, 53), 13, NOW + 61 + KEPT_S - 0.1)
    assert one.desired == 9
    one.tick(Averages(53, 53), 9, NOW + 61 + 2 * 60 + KEPT_S)
    assert one.desired == 8


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_number_that_makes_no_sense_is_no_burst(number: float) -> None:
    one = decider(0)
    assert not one.report("act-0", number, NOW)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.integers(0, 20), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_without_bursts_it_is_the_windows_arithmetic(ticks: list[tuple[float, float, int, bool]]) -> None:
    spec = replace(SPEC, min=2, max=5)
    one, state = Decider(spec, 1, NOW), ScalingState.start(spec, 1, NOW)
    for number, (stable, panic, ready, known) in enumerate(ticks):
        averages = Averages(stable, panic) if known else None
        now = NOW + 2 * number
        before = state.wanted, state.excess_burst < 0
        decide(spec, Observed(stable if known else None, panic if known else None, ready), state, now)
        assert one.tick(averages, ready, now) == (before != (state.wanted, state.excess_burst < 0))
        assert one.desired == state.wanted
    assert one.state == state


@given(st.floats(0.1, 500), st.floats(0, 50), st.integers(1, 10))
def test_after_a_burst_there_is_room_for_what_was_reported(
    reported: float, average: float, ready: int
) -> None:
    one = decider(ready, max=40)
    one.tick(Averages(average, average), ready, NOW)
    if one.report("act-0", reported, NOW):
        one.tick(Averages(average, average), ready, NOW)
    assert one.desired * SPEC.capacity >= min(reported, 40 * SPEC.capacity)


def collection(scraped: bool = True) -> Collection:
    return Collection(60, 6, "linear", scraped)


def test_silence_is_no_data_only_where_somebody_scrapes() -> None:
    assert collection(scraped=True).averages("concurrency", NOW) is None
    assert collection(scraped=False).averages("rps", NOW) == (0, 0)
    one = collection()
    assert one.record(Load(4, 40), NOW)
    assert one.averages("concurrency", NOW) == (4, 4)
    assert one.averages("rps", NOW) == (40, 40)
    assert one.averages("concurrency", NOW + 60) == (0, 0)
    assert one.averages("concurrency", NOW + 61) is None


def test_reports_of_one_second_add_up() -> None:
    one = collection()
    for _ in range(3):
        one.record(Load(2, 5), NOW)
    one.record(Load(1, 1), NOW - 1)
    assert one.averages("concurrency", NOW) == (3.5, 3.5)


def test_other_windows_apply_to_what_is_there() -> None:
    one = collection()
    for second in range(10):
        one.record(Load(second, 0), NOW + second)
    one.configure(10, 1, False, NOW + 9)
    assert one.averages("concurrency", NOW + 9) == (4.5, 9)
    assert one.averages("concurrency", NOW + 99) == (0, 0)


@pytest.mark.parametrize("load", [Load(math.nan, 1), Load(1, math.inf), Load(-math.inf, 0), Load(1e300, 1)])
def test_a_number_that_would_spoil_the_average_is_refused(load: Load) -> None:
    one = collection()
    assert not one.record(load, NOW)
    assert one.averages("rps", NOW) is None
