"""decide(): Knative's own table of cases (pkg/autoscaler/scaling/autoscaler_test.go), bounds, and properties."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.facts import Scale
from kserve_ext.core.scaling.decide import Decision, Observed, ScalingSpec, ScalingState, decide

NOW = 1000.0
UTILIZATION = 0.75  # of Knative's test fixture


def spec_for(target: float, tbc: float = 100, **changes: object) -> ScalingSpec:
    """Knative's fixture: threshold 2, rates 10, window 60 s, reachable."""
    spec = ScalingSpec(
        target=target,
        total=target / UTILIZATION,
        target_burst_capacity=tbc,
        panic_threshold=2,
        max_up_rate=10,
        max_down_rate=10,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def excess(target: float, tbc: float, panic: float, ready: int) -> int:
    return math.floor(target / UTILIZATION * ready - tbc - panic)


def first(spec: ScalingSpec, stable: float, panic: float, ready: int = 1) -> Decision:
    return decide(spec, Observed(stable, panic, ready), ScalingState(), NOW)


SCALE_TABLE = [
    # target, tbc, changes, stable, panic, ready, wanted
    pytest.param(10, 101, {}, 50, 10, 1, 5, id="stable increase"),
    pytest.param(10, 101, {}, 100, 10, 1, 10, id="stable increase further"),
    pytest.param(10, 101, {}, 50, 50, 1, 5, id="rps increase"),
    pytest.param(10, 101, {}, 100, 99, 1, 10, id="rps increase further"),
    pytest.param(10, 98, {}, 100, 100, 8, 10, id="stable at 8"),
    pytest.param(10, 98, {}, 50, 50, 8, 5, id="stable decrease"),
    pytest.param(10, 75, {}, 1, 0, 1, 1, id="little traffic keeps one"),
    pytest.param(10, 75, {}, 0, 0, 1, 0, id="no traffic scales to zero"),
    pytest.param(10, 75, {"activation": 2}, 0, 0, 1, 0, id="activation scale leaves zero alone"),
    pytest.param(10, 75, {"activation": 2}, 1, 0, 1, 2, id="activation scale"),
    pytest.param(10, 100, {}, 0, 0, 1, 0, id="no load at one"),
    pytest.param(181, -1, {}, 21, 26, 1, 1, id="unlimited burst capacity"),
    pytest.param(10, 0, {}, 50, 49, 1, 5, id="no burst capacity"),
    pytest.param(10, 100, {}, 50, 50, 1, 5, id="no change"),
    pytest.param(10, 100, {}, 50, 50, 5, 5, id="already scaled"),
    pytest.param(1, 1982, {"max_up_rate": 1.1}, 3, 3.1, 2, 3, id="small up rate still adds one"),
    pytest.param(10, 1982, {"max_down_rate": 1.1}, 1, 1, 100, 90, id="small down rate"),
    pytest.param(10, 1982, {"max_down_rate": 1.1, "reachable": False}, 1, 1, 100, 1, id="unreachable drops at once"),
    pytest.param(10, 84, {}, 50, 100, 1, 10, id="panic wants double"),
    pytest.param(10, 61, {}, 1000, 1001, 1, 10, id="up rate from 1"),
    pytest.param(10, 61, {}, 1000, 1001, 10, 100, id="up rate from 10"),
    pytest.param(10, 61, {}, 1, 1, 100, 10, id="down rate from 100"),
    pytest.param(10, 61, {}, 1, 1, 10, 1, id="down rate from 10"),
    pytest.param(10, 81, {}, 1000, 888, 0, 10, id="none ready counts as one for the rate"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "tbc", "changes", "stable", "panic", "ready", "wanted"), SCALE_TABLE)
def test_knative_table(
    target: float,
    tbc: float,
    changes: dict[str, object],
    stable: float,
    panic: float,
    ready: int,
    wanted: int,
) -> None:
    decision = first(spec_for(target, tbc, **changes), stable, panic, ready)
    assert (decision.desired, decision.valid) == (wanted, True)
    want_excess = int(tbc) if tbc <= 0 else excess(target, tbc, panic, ready)
    assert decision.excess_burst == want_excess


@pytest.mark.parametrize(("stable", "wanted"), [(50, 50), (20, 30)], ids=["stable larger", "panic larger"])
def test_in_panic_the_larger_of_both_counts(stable: float, wanted: int) -> None:
    state = ScalingState(panic_since=NOW - 5, max_panic=5)
    decision = decide(spec_for(1), Observed(stable, 30, 5), state, NOW)
    assert (decision.desired, decision.panic) == (wanted, True)
    assert state.max_panic == wanted


def test_no_data_keeps_the_former_verdict() -> None:
    spec, state = spec_for(10), ScalingState()
    assert decide(spec, Observed(None, None, 1), state, NOW) == Decision(
        -1, -1, False, valid=False, limits=("no-data",)
    )
    decide(spec, Observed(50, 50, 1), state, NOW)
    kept = decide(spec, Observed(None, None, 1), state, NOW + 2)
    assert (kept.desired, kept.valid, kept.excess_burst) == (5, False, excess(10, 100, 50, 1))
    uncounted = decide(spec, Observed(1000, 888, None), state, NOW + 4)
    assert (uncounted.desired, uncounted.valid) == (5, False)
    assert decide(replace(spec, max=3), Observed(None, None, 1), state, NOW + 6).desired == 3


def test_unpanic_after_slow_increase() -> None:
    spec, state = spec_for(1, 98), ScalingState()
    assert decide(spec, Observed(11, 25, 10), state, NOW).desired == 25
    assert state.panic_since == NOW
    assert decide(spec, Observed(30, 41, 40), state, NOW + 30).desired == 41
    assert state.panic_since == NOW
    decision = decide(spec, Observed(50, 56, 55), state, NOW + 62)
    assert (decision.desired, decision.panic, decision.excess_burst) == (50, False, excess(1, 98, 56, 55))
    assert state == ScalingState(wanted=50, excess_burst=decision.excess_burst, initialized=True)


def test_a_surge_that_goes_on_extends_the_panic() -> None:
    spec, state = spec_for(1, 98), ScalingState()
    assert decide(spec, Observed(11, 25, 10), state, NOW).desired == 25
    assert decide(spec, Observed(30, 80, 40), state, NOW + 30).desired == 80
    assert state.panic_since == NOW + 30


def test_panic_tracks_exponential_growth_and_stays() -> None:
    spec, state = spec_for(1, 101), ScalingState()
    for ready, load in [(1, 6), (6, 36), (36, 216), (216, 1296)]:
        assert decide(spec, Observed(load, load, ready), state, NOW + ready).desired == load
        assert state.panic_since == NOW + ready
    assert decide(spec, Observed(1296, 1296, 1296), state, NOW + 217).desired == 1296


def test_panic_then_unpanic_scales_down() -> None:
    spec, state = spec_for(10, 93), ScalingState()
    assert decide(spec, Observed(100, 100, 1), state, NOW).desired == 10
    assert decide(spec, Observed(100, 1000, 10), state, NOW).desired == 100
    held = decide(spec, Observed(1, 1, 10), state, NOW + 30)
    assert (held.desired, "panic" in held.limits) == (100, True)
    assert decide(spec, Observed(1, 1, 10), state, NOW + 60).desired == 100
    assert decide(spec, Observed(1, 1, 10), state, NOW + 61).desired == 1


def test_part_of_an_instance_wanted_is_a_whole_one_also_for_panic() -> None:
    state = ScalingState()
    decision = decide(spec_for(10), Observed(5, 11, 1), state, NOW)
    assert (decision.desired, decision.panic, decision.panic_want) == (2, True, 2)
    again = decide(spec_for(10), Observed(5, 11, 2), state, NOW + 2)
    assert (again.desired, again.limits) == (2, ())  # as many as the panic holds: nothing was held back


def test_a_changed_target_counts_at_once() -> None:
    state = ScalingState()
    assert decide(spec_for(10, 77), Observed(100, 101, 1), state, NOW).desired == 10
    changed = decide(spec_for(1, 71), Observed(100, 101, 10), state, NOW)
    assert (changed.desired, changed.excess_burst) == (100, excess(1, 71, 101, 10))


@pytest.mark.parametrize(("ready", "panicking"), [(0, False), (1, False), (2, True)])
def test_more_than_one_at_start_means_panic(ready: int, panicking: bool) -> None:
    state = ScalingState.start(spec_for(100, 11), ready, NOW)
    assert (state.panic_since is not None, state.max_panic) == (panicking, ready)


@pytest.mark.parametrize(("initial", "done"), [(0, True), (1, False)])
def test_an_initial_scale_of_zero_is_reached_from_the_start(initial: int, done: bool) -> None:
    spec = spec_for(10, initial=initial)
    assert ScalingState.start(spec, 0, NOW).initialized is done


@pytest.mark.parametrize(("tbc", "want"), [(42, 8), (-1, -1), (0, 0)])
def test_excess_burst_before_the_first_decision(tbc: float, want: int) -> None:
    spec = replace(spec_for(10, tbc), initial=2, total=25)
    assert ScalingState.start(spec, 0, NOW).excess_burst == want


DELAYED = spec_for(10, panic_threshold=100, scale_down_delay_s=300)


def at(state: ScalingState, minute: float, load: float, spec: ScalingSpec = DELAYED) -> Decision:
    return decide(spec, Observed(load, load, 0), state, minute * 60)


def test_scale_down_delay() -> None:
    state = ScalingState.start(DELAYED, 0, 0)
    script = [
        (2 / 60, 40, 4),
        (5, 0, 4),
        (5 + 2 / 60, 0, 0),
        (9, 40, 4),
        (10, 30, 4),
        (11, 0, 4),
        (14, 0, 3),
        (15, 0, 0),
    ]
    for minute, load, want in script:
        assert at(state, minute, load).desired == want, minute
    assert at(state, 16, 40).limits == ()
    assert at(state, 17, 0).limits == ("scale-down-delay",)


def test_scale_down_delay_ends_when_unreachable() -> None:
    state = ScalingState.start(DELAYED, 0, 0)
    assert at(state, 2 / 60, 40).desired == 4
    assert at(state, 1, 0).desired == 4
    assert at(state, 1 + 2 / 60, 0, replace(DELAYED, reachable=False)).desired == 0


def test_without_delay_the_newest_of_one_tick_counts() -> None:
    spec = spec_for(10, panic_threshold=100, reachable=False)
    state = ScalingState.start(spec, 0, 0)
    assert decide(spec, Observed(40, 40, 0), state, 0).desired == 4
    assert decide(spec, Observed(20, 20, 0), state, 0.5).desired == 2


@pytest.mark.parametrize(
    ("changes", "stable", "ready", "want", "limits"),
    [
        pytest.param({"min": 2}, 0, 1, 2, ("min-scale",), id="min"),
        pytest.param({"min": 2, "reachable": False}, 0, 2, 0, (), id="unreachable ignores min"),
        pytest.param({"max": 3}, 90, 8, 3, ("max-scale",), id="max"),
        pytest.param({"max": 3, "reachable": False}, 90, 8, 3, ("max-scale",), id="unreachable keeps max"),
        pytest.param({"initial": 5}, 0, 1, 5, ("initial-scale",), id="initial not reached"),
        pytest.param({"initial": 5}, 0, 5, 0, (), id="initial reached"),
        pytest.param({"initial": 5, "max": 3}, 0, 1, 3, ("initial-scale",), id="max beats initial"),
        pytest.param({"initial": 1}, 0, 0, 0, (), id="an initial scale of one is no bound"),
        pytest.param({"max_up_rate": 2.0}, 90, 2, 4, ("max-scale-up-rate",), id="up rate"),
        pytest.param({"max_down_rate": 2.0}, 10, 9, 4, ("max-scale-down-rate",), id="down rate"),
        pytest.param({"activation": 4, "max": 2}, 10, 2, 2, ("activation-scale", "max-scale"), id="both"),
    ],
)  # fmt: skip
def test_bounds_and_the_limits_that_bit(
    changes: dict[str, object], stable: float, ready: int, want: int, limits: tuple[str, ...]
) -> None:
    spec = replace(spec_for(10, panic_threshold=1000), **changes)  # type: ignore[arg-type]
    decision = decide(spec, Observed(stable, stable, ready), ScalingState(), NOW)
    assert (decision.desired, decision.limits) == (want, limits)


def test_the_initial_scale_binds_only_until_it_was_reached_once() -> None:
    spec, state = spec_for(10, initial=3), ScalingState.start(spec_for(10, initial=3), 0, NOW)
    assert decide(spec, Observed(0, 0, 2), state, NOW).desired == 3
    assert decide(spec, Observed(0, 0, 3), state, NOW + 2).desired == 0
    assert decide(spec, Observed(0, 0, 0), state, NOW + 4).desired == 0


@pytest.mark.parametrize(
    ("scale", "concurrency", "total", "target", "capacity"),
    [
        pytest.param(Scale(), 0, 100, 70, 100, id="unlimited: the soft target"),
        pytest.param(Scale(), 4, 4, 2.8, 4, id="hard limit"),
        pytest.param(Scale(target=10), 4, 4, 2.8, 4, id="target above the hard limit"),
        pytest.param(Scale(target=2), 4, 2, 1.4, 2, id="target below the hard limit"),
        pytest.param(Scale(target=2, utilization=0.5), 0, 2, 1, 2, id="utilisation"),
        pytest.param(Scale(target=0.01, utilization=0.1), 0, 0.01, 0.01, 1, id="least target"),
        pytest.param(Scale(metric="rps"), 8, 200, 140, 8, id="rps: bursts by the hard limit"),
        pytest.param(Scale(metric="rps", target=9), 0, 9, 6.3, 100, id="rps: bursts by the default"),
    ],
)
def test_targets(scale: Scale, concurrency: int, total: float, target: float, capacity: float) -> None:
    spec = ScalingSpec.of(scale, concurrency)
    assert (spec.total, spec.capacity) == (total, capacity)
    assert spec.target == pytest.approx(target)


loads = st.floats(0, 500, allow_nan=False)
specs = st.builds(
    lambda target, low, extra, up, down, activation, initial, reachable, delay: ScalingSpec(
        target=target,
        total=target / 0.7,
        min=low,
        max=low + extra if extra else 0,
        max_up_rate=up,
        max_down_rate=down,
        activation=activation,
        initial=initial,
        reachable=reachable,
        scale_down_delay_s=delay,
    ),
    st.floats(0.01, 100),
    st.integers(0, 5),
    st.integers(0, 20),
    st.floats(1.01, 1000),
    st.floats(1.01, 10),
    st.integers(1, 5),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([0.0, 10.0]),
)
ticks = st.lists(st.tuples(loads, loads, st.integers(0, 50)), min_size=1, max_size=40)


@given(specs, ticks)
def test_always_within_bounds_and_never_down_in_panic(
    spec: ScalingSpec, history: list[tuple[float, float, int]]
) -> None:
    state = ScalingState.start(spec, history[0][2], 0)
    former: Decision | None = None
    for tick, (stable, panic, ready) in enumerate(history):
        decision = decide(spec, Observed(stable, panic, ready), state, tick * 2.0)
        assert decision.valid
        if spec.max:
            assert decision.desired <= spec.max
        if spec.reachable:
            assert decision.desired >= spec.min
        if former is not None and former.panic and decision.panic and "initial-scale" not in former.limits:
            assert decision.desired >= former.desired
        needed = math.ceil(max(stable, panic) / spec.target)
        if not decision.limits and not decision.panic:
            assert decision.desired == math.ceil(stable / spec.target) <= needed
        former = decision


@given(specs, loads, loads, st.integers(0, 50))
def test_the_same_input_gives_the_same_decision(
    spec: ScalingSpec, stable: float, panic: float, ready: int
) -> None:
    def run() -> Decision:
        return decide(spec, Observed(stable, panic, ready), ScalingState.start(spec, ready, 0), 2)

    assert run() == run()
