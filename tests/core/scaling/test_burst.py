"""burst(): enough at arrival, never more than max-scale, never twice, and the next tick doesn't undo it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.facts import Scale
from kserve_ext.core.scaling.burst import Demand, burst
from kserve_ext.core.scaling.decide import Observed, ScalingSpec, ScalingState, decide

NOW = 1000.0


def spec_of(concurrency: int = 0, **scale: object) -> ScalingSpec:
    return ScalingSpec.of(Scale(**scale), concurrency)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "held", "in_flight", "existing", "want"),
    [
        pytest.param(spec_of(1), 1, 0, 0, 1, id="one request wakes one, not one and a spare"),
        pytest.param(spec_of(1), 0, 0, 0, 0, id="nothing asked"),
        pytest.param(spec_of(4), 9, 0, 0, 3, id="rounded up"),
        pytest.param(spec_of(4), 1, 8, 2, 3, id="held and in flight are summed before rounding"),
        pytest.param(spec_of(4), 1, 7, 2, 2, id="what runs takes it"),
        pytest.param(spec_of(4), 0, 0, 3, 3, id="never shrinks"),
        pytest.param(spec_of(1, max=5), 1000, 0, 0, 5, id="max-scale"),
        pytest.param(spec_of(1, max=5), 1000, 0, 7, 7, id="above a lowered max-scale nothing is added"),
        pytest.param(spec_of(0), 101, 0, 1, 2, id="unlimited: the soft target"),
        pytest.param(spec_of(0, target=10), 101, 0, 1, 11, id="unlimited: the annotated target"),
        pytest.param(spec_of(1, activation=3), 1, 0, 0, 3, id="activation scale"),
        pytest.param(spec_of(1, activation=3, max=2), 1, 0, 0, 2, id="activation scale within max"),
        pytest.param(spec_of(2, metric="rps", target=50), 5, 0, 0, 3, id="rps: by concurrency"),
    ],
)
def test_how_many_should_exist(
    spec: ScalingSpec, held: int, in_flight: int, existing: int, want: int
) -> None:
    assert burst(spec, Demand(held, in_flight), existing, ScalingState(), NOW) == want


def test_the_next_tick_keeps_it_though_the_request_is_gone_and_lets_go_after_a_window() -> None:
    spec = spec_of(1)
    state = ScalingState.start(spec, 0, NOW)
    assert burst(spec, Demand(4, 0), 0, state, NOW + 0.1) == 4
    for seconds in (2, 30, 60):
        kept = decide(spec, Observed(0, 0, 4), state, NOW + seconds)
        assert (kept.desired, kept.panic) == (4, True)
    assert decide(spec, Observed(0, 0, 4), state, NOW + 61).desired == 2  # halves at most
    assert decide(spec, Observed(0, 0, 1), state, NOW + 63).desired == 0


def test_without_data_the_burst_stands() -> None:
    spec, state = spec_of(1), ScalingState()
    burst(spec, Demand(2, 0), 0, state, NOW)
    kept = decide(spec, Observed(None, None, 0), state, NOW + 2)
    assert (kept.desired, kept.valid) == (2, False)


def test_load_within_what_exists_is_left_to_the_windows() -> None:
    spec, state = spec_of(10), ScalingState()
    assert burst(spec, Demand(0, 15), 2, state, NOW) == 2
    assert state == ScalingState()


def test_a_rise_in_panic_extends_it() -> None:
    spec, state = spec_of(1), ScalingState()
    burst(spec, Demand(2, 0), 0, state, NOW)
    burst(spec, Demand(3, 2), 2, state, NOW + 40)
    assert (state.panic_since, state.max_panic) == (NOW + 40, 5)
    burst(spec, Demand(1, 0), 5, state, NOW + 50)
    assert (state.panic_since, state.max_panic) == (NOW + 40, 5)


arrivals = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30)


@given(arrivals, st.integers(0, 6), st.integers(0, 12), st.integers(1, 4))
def test_never_asks_twice_and_never_above_max(
    demands: list[tuple[int, int]], concurrency: int, most: int, activation: int
) -> None:
    spec = spec_of(concurrency, max=most, activation=activation)
    state = ScalingState.start(spec, 0, NOW)
    existing = 0
    for step, (held, in_flight) in enumerate(demands):
        asked = burst(spec, Demand(held, in_flight), existing, state, NOW + step)
        assert asked >= existing
        assert not most or asked <= max(existing, most)
        assert burst(spec, Demand(held, in_flight), asked, state, NOW + step) == asked
        if not most:
            assert asked * spec.capacity >= held + in_flight
        existing = asked


@given(st.integers(1, 60), st.integers(0, 20), st.integers(0, 10), st.floats(0, 59.9), st.floats(0, 30))
def test_a_tick_within_the_window_never_undoes_a_burst(
    held: int, existing: int, most: int, later: float, load: float
) -> None:
    spec = replace(spec_of(1), max=most)
    state = ScalingState.start(spec, existing, NOW)
    asked = burst(spec, Demand(held, 0), existing, state, NOW)
    decision = decide(spec, Observed(load, load, existing), state, NOW + later)
    if asked > existing:
        assert decision.desired >= asked
    if most:
        assert decision.desired <= most
