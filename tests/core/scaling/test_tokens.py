"""Instances by tokens: monotone in demand, steady under steady load, silent without a measurement."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.facts import Scale
from kserve_ext.core.scaling.decide import Observed, ScalingState, decide
from kserve_ext.core.scaling.spec import ScalingSpec
from kserve_ext.core.scaling.tokens import BAND, BURST_S, TokenDemand, by_instances, with_margin
from kserve_ext.core.scaling.window import Averages

needs = st.floats(0, 200)
counts = st.integers(0, 220)


@given(needs, needs, counts)
def test_monotone_in_need(a: float, b: float, existing: int) -> None:
    less, more = sorted((a, b))
    assert with_margin(less, existing) <= with_margin(more, existing)


@given(needs, counts)
def test_always_enough_and_never_more_than_the_margin(need: float, existing: int) -> None:
    count = with_margin(need, existing)
    assert count >= need - 1e-6
    assert count <= max(need / (1 - BAND), 0) + 1
    assert with_margin(need, count) == count, "asked again it says the same"


@given(st.floats(0.3, 60), st.randoms(use_true_random=False))
def test_steady_load_with_noise_comes_to_rest(need: float, rng: random.Random) -> None:
    """Noise of 4 % either way is less than the margin: after the first moments nothing changes."""
    count, seen = 1, []
    for _ in range(200):
        count = with_margin(need * rng.uniform(0.96, 1.04), count)
        seen.append(count)
    changes = sum(a != b for a, b in itertools.pairwise(seen[20:]))
    assert changes <= 1


def demand(velocity: float, scale: Scale | None = None) -> TokenDemand:
    tokens = TokenDemand(scale or Scale())
    tokens.velocity = velocity
    return tokens


def test_without_a_velocity_or_a_record_it_says_nothing() -> None:
    unknown = demand(0.0)
    unknown.arrived(10_000)
    unknown.record(1.0, 1.0)
    unknown.queued = 10_000
    assert unknown.counts(1, 1.0) is None
    assert unknown.burst() == 0
    assert demand(100.0).counts(1, 1.0) is None


def test_a_steady_rate_over_velocity_and_utilization() -> None:
    tokens = demand(1000.0, Scale(utilization=0.5))
    for second in range(70):
        tokens.arrived(1500)
        tokens.record(1.0, float(second))
    assert tokens.counts(1, 69.0) == Averages(3.0, 3.0)


@given(st.integers(0, 100_000), st.floats(10, 10_000))
def test_a_queue_is_through_in_time(queued: int, velocity: float) -> None:
    tokens = demand(velocity)
    tokens.queued = queued
    count = tokens.burst()
    assert count * velocity * BURST_S >= queued - 1e-3
    assert (count - 1) * velocity * BURST_S < queued or count == 0


@given(
    st.integers(0, 5),
    st.integers(0, 8),
    st.integers(1, 6),
    st.floats(0, 500),
    needs.map(round),
    st.booleans(),
)
def test_bounds_hold_whatever_is_asked(
    least: int, more: int, ready: int, requests: float, by_tokens: int, instead: bool
) -> None:
    most = least + more
    spec = ScalingSpec.of(Scale(min=least, max=most, target=10.0))
    state = ScalingState.start(spec, ready, 0.0)
    state.initialized = True
    averages = Averages(float(by_tokens), float(by_tokens))
    asked, observed = by_instances(spec, Averages(requests, requests), averages, ready, instead)
    decision = decide(asked, observed, state, 100.0)
    assert decision.desired >= least
    assert not most or decision.desired <= most


@given(st.floats(0, 500), st.integers(1, 30))
def test_beside_tokens_of_nothing_concurrency_decides_as_ever(requests: float, ready: int) -> None:
    spec = ScalingSpec.of(Scale(target=10.0))
    decisions = []
    for with_tokens in (False, True):
        state = ScalingState.start(spec, ready, 0.0)
        asked, observed = spec, Observed(requests, requests, ready)
        if with_tokens:
            averages = Averages(requests, requests)
            asked, observed = by_instances(spec, averages, Averages(0.0, 0.0), ready, False)
        decision = decide(asked, observed, state, 10.0)
        decisions.append((decision.desired, decision.panic, decision.limits))
    assert decisions[0] == decisions[1]
