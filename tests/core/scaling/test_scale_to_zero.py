"""step(): the two phases down, the waits between them, and when a revision is active."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.scaling.decide import ScalingSpec
from kserve_ext.core.scaling.scale_to_zero import Activity, Phase, Verdict, step

SPEC = ScalingSpec(target=0.7, total=1)  # window 60 s, grace 30 s, no retention
LONG_AGO = -10_000.0


def idle(
    spec: ScalingSpec,
    phase: Phase,
    for_s: float,
    desired: int = 0,
    ready: int = 1,
    diverted_for_s: float | None = 10_000,
    busy: bool = False,
    initialized: bool = True,
) -> Verdict:
    """One step of a revision that has been in `phase` for so long."""
    diverted_since = None if diverted_for_s is None else -diverted_for_s
    return step(spec, desired, ready, initialized, Activity(phase, -for_s), 0.0, diverted_since, busy)


CASES = {
    "just before the window ends": (
        idle(SPEC, "active", 59.5),
        Verdict(1, "active", "idle-wait", 0.5),
    ),
    "from ten to one meanwhile": (
        idle(SPEC, "active", 59.5, ready=10),
        Verdict(1, "active", "idle-wait", 0.5),
    ),
    "deactivates without scaling": (
        idle(SPEC, "active", 60),
        Verdict(None, "inactive", "deactivated", 0),
    ),
    "own window": (
        idle(replace(SPEC, stable_window_s=6), "active", 6),
        Verdict(None, "inactive", "deactivated", 0),
    ),
    "diverted for long beats grace": (
        idle(SPEC, "inactive", 0),
        Verdict(0, "inactive", "no-traffic"),
    ),
    "in the grace period": (
        idle(SPEC, "inactive", 10, diverted_for_s=10),
        Verdict(None, "inactive", "grace-period", 20),
    ),
    "after the grace period": (
        idle(SPEC, "inactive", 30, diverted_for_s=0),
        Verdict(0, "inactive", "no-traffic"),
    ),
    "not before requests can be held": (
        idle(SPEC, "inactive", 99, diverted_for_s=None),
        Verdict(None, "inactive", "not-diverted", 1),
    ),
    "before retention": (
        idle(replace(SPEC, retention_s=45), "inactive", 40),
        Verdict(None, "inactive", "retention-period", 5),
    ),
    "after retention": (
        idle(replace(SPEC, retention_s=45), "inactive", 45),
        Verdict(0, "inactive", "no-traffic"),
    ),
    "retention, then grace": (
        idle(replace(SPEC, retention_s=5), "inactive", 3, diverted_for_s=3),
        Verdict(None, "inactive", "retention-period", 27),
    ),
    "unreachable ignores retention": (
        idle(replace(SPEC, retention_s=45, reachable=False), "inactive", 1),
        Verdict(0, "inactive", "no-traffic"),
    ),
    "still starting": (
        idle(SPEC, "activating", 629, ready=0),
        Verdict(None, "activating", "starting", 1),
    ),
    "never started": (
        idle(SPEC, "activating", 630, ready=0),
        Verdict(0, "inactive", "timed-out"),
    ),
    "own deadline": (
        idle(replace(SPEC, start_deadline_s=35), "activating", 35, ready=0),
        Verdict(0, "inactive", "timed-out"),
    ),
    "zero forbidden": (
        idle(replace(SPEC, to_zero=False), "active", 999),
        Verdict(1, "active", "scale-to-zero-disabled"),
    ),
    "a request that no average shows": (
        idle(SPEC, "active", 999, busy=True),
        Verdict(1, "active", "busy"),
    ),
    "a request in the last moment": (
        idle(SPEC, "inactive", 999, busy=True),
        Verdict(1, "active", "busy"),
    ),
    "min-scale": (
        idle(replace(SPEC, min=2), "active", 999, desired=2, ready=2),
        Verdict(2, "active", "min-scale"),
    ),
    "woken": (
        idle(SPEC, "inactive", 5, desired=3, ready=0),
        Verdict(3, "activating", "demand"),
    ),
    "one ready is active": (
        idle(SPEC, "activating", 5, desired=3, ready=1),
        Verdict(3, "active", "demand"),
    ),
    "min-scale not ready": (
        idle(replace(SPEC, min=2), "activating", 5, desired=2, ready=1),
        Verdict(2, "activating", "min-scale"),
    ),
    "all instances lost": (
        idle(SPEC, "active", 5, desired=3, ready=0),
        Verdict(3, "activating", "demand"),
    ),
    "unknown never scales": (
        idle(SPEC, "active", 5, desired=-1),
        Verdict(None, "active", "unknown"),
    ),
    "unknown stays down": (
        idle(SPEC, "inactive", 5, desired=-1, ready=0),
        Verdict(None, "inactive", "unknown"),
    ),
    "unknown while starting": (
        idle(SPEC, "activating", 5, desired=-1, ready=0),
        Verdict(None, "activating", "starting", 625),
    ),
    "initial scale": (
        idle(replace(SPEC, initial=3), "activating", 5, desired=-1, ready=1, initialized=False),
        Verdict(3, "activating", "min-scale"),
    ),
    "initial scale reached": (
        idle(replace(SPEC, initial=3), "activating", 5, desired=3, ready=3, initialized=False),
        Verdict(3, "active", "min-scale"),
    ),
}


@pytest.mark.parametrize(("verdict", "want"), CASES.values(), ids=CASES.keys())
def test_one_step(verdict: Verdict, want: Verdict) -> None:
    assert verdict == want


@pytest.mark.parametrize(
    ("changes", "phase", "count"),
    [
        ({}, "activating", 1),
        ({"initial": 0}, "inactive", 0),
        ({"initial": 0, "min": 1}, "activating", 1),
        ({"initial": 4, "max": 2}, "activating", 2),
        ({"reachable": False}, "inactive", 0),
    ],
)
def test_start(changes: dict[str, object], phase: Phase, count: int) -> None:
    spec = replace(SPEC, **changes)  # type: ignore[arg-type]
    assert (Activity.start(spec, 0).phase, spec.initial_count) == (phase, count)


def test_the_whole_life_of_a_revision() -> None:
    """Starts, serves, is idle, goes; the phase clock runs from the last change of phase only."""
    activity = Activity.start(SPEC, 0)
    assert step(SPEC, -1, 0, False, activity, 1, 0.0) == Verdict(None, "activating", "starting", 629)
    assert step(SPEC, 0, 1, True, activity, 12, 0.0) == Verdict(None, "active", "starting", 618)
    step(SPEC, 2, 2, True, activity, 50, 0.0)
    assert activity.since == 12
    assert step(SPEC, 0, 2, True, activity, 71, 0.0) == Verdict(1, "active", "idle-wait", 1)
    assert step(SPEC, 0, 2, True, activity, 72, 0.0) == Verdict(None, "inactive", "deactivated", 0)
    assert step(SPEC, 0, 2, True, activity, 72, 0.0) == Verdict(0, "inactive", "no-traffic")
    assert not activity.timed_out
    assert step(SPEC, 1, 0, True, activity, 100, 0.0) == Verdict(1, "activating", "demand")
    assert step(SPEC, 0, 0, True, activity, 730, 0.0) == Verdict(0, "inactive", "timed-out")
    assert activity.timed_out


specs = st.builds(
    lambda low, extra, initial, retention, to_zero, reachable: replace(
        SPEC,
        min=low,
        max=low + extra if extra else 0,
        initial=initial,
        retention_s=retention,
        to_zero=to_zero,
        reachable=reachable,
    ),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(0, 3),
    st.sampled_from([0.0, 40.0]),
    st.booleans(),
    st.booleans(),
)
steps = st.lists(
    st.tuples(st.floats(0, 50), st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=30
)


@given(specs, steps)
def test_zero_is_applied_only_after_all_waits(
    spec: ScalingSpec, history: list[tuple[float, int, int, bool]]
) -> None:
    activity = Activity.start(spec, 0)
    now = 0.0
    initialized = spec.enough(False) == 0
    for passed, wish, ready, busy in history:
        now += passed
        initialized = initialized or ready >= spec.enough(False)
        desired = spec.capped(max(wish, spec.floor(initialized)))
        former = replace(activity)
        verdict = step(spec, desired, ready, initialized, activity, now, 0.0, busy)
        assert verdict.phase == activity.phase
        if verdict.scale is None:
            assert desired == 0
            continue
        if desired > 0:
            assert verdict.scale == desired
        elif verdict.scale == 0:
            assert spec.to_zero
            if former.phase == "activating":
                assert now - former.since >= spec.start_deadline_s
            else:
                assert former.phase == "inactive"
                assert not busy
                assert now >= spec.grace_s
                assert not spec.reachable or now - former.since >= spec.retention_s
        else:
            assert verdict.scale == 1
