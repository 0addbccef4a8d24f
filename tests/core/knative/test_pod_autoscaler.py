"""reconcile(): the tables of Knative's scaler_test.go and kpa_test.go, and what must hold whatever comes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.knative.pod_autoscaler import (
    Known,
    Mode,
    Outcome,
    Pods,
    Service,
    Wanted,
    activators,
    needs_probe,
    reconcile,
    without_service,
)
from kserve_ext.core.scaling.scale_to_zero import Phase
from kserve_ext.core.scaling.spec import ScalingSpec

NOW = 1_700_000_000.0
GRACE, WINDOW, PA_WINDOW, DEADLINE = 60.0, 300.0, 45.0, 151.0
#: Knative's fixture of these tests.
SPEC = ScalingSpec(
    target=5,
    total=10,
    target_burst_capacity=200,
    stable_window_s=WINDOW,
    grace_s=GRACE,
    start_deadline_s=DEADLINE,
)
SERVE = Service(Mode.SERVE, "rev", "rev-private")
PROXY = Service(Mode.PROXY, "rev", "rev-private")


def decide(
    spec: ScalingSpec = SPEC,
    phase: Phase = "activating",
    for_s: float = 0.0,
    desired: int = 0,
    excess: int = 0,
    ready: int = 0,
    initialized: bool = False,
    service: Service = SERVE,
    probed: bool = True,
) -> Outcome:
    known = Known(phase, NOW - for_s, initialized, "rev")
    return reconcile(spec, known, service, Wanted(desired, excess), Pods(ready), probed, 100.0, NOW)


class Case(NamedTuple):
    """One of TestScaler: scale = what is patched (None: nothing), recheck: whether it asks to be called again."""

    given: dict[str, Any]
    want: int
    scale: int | None
    recheck: bool = False
    spec: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def proxying(for_s: float) -> Service:
    return replace(PROXY, proxying_since=NOW - for_s)


SCALER = {
    "just before the idle period": Case({"phase": "active", "for_s": WINDOW - 1}, 1, 1, True),
    "just before, own window": Case(
        {"phase": "active", "for_s": PA_WINDOW - 1}, 1, 1, True, {"stable_window_s": PA_WINDOW}
    ),
    "own window is over": Case(
        {"phase": "active", "for_s": WINDOW}, 0, None, False, {"stable_window_s": PA_WINDOW}
    ),
    "after the idle period": Case({"phase": "active", "for_s": WINDOW}, 0, None),
    "after it, activators in the path already": Case(
        {"phase": "active", "for_s": WINDOW, "service": PROXY}, 0, None, True
    ),
    "after grace, retention 0": Case({"phase": "inactive", "for_s": GRACE}, 0, 0),
    "after grace, before retention": Case(
        {"phase": "inactive", "for_s": GRACE}, 0, None, True, {"retention_s": 2 * GRACE}
    ),
    "after both": Case({"phase": "inactive", "for_s": GRACE}, 0, 0, False, {"retention_s": GRACE}),
    "just before grace": Case({"phase": "inactive", "for_s": GRACE - 1}, 0, None, True),
    "just before grace, proxying for too short": Case(
        {"phase": "inactive", "for_s": GRACE - 1, "service": proxying(GRACE - 1)}, 0, None, True
    ),
    "just before grace, proxying for long, retention over": Case(
        {"phase": "inactive", "for_s": GRACE - 1, "service": proxying(GRACE)},
        0,
        0,
        False,
        {"retention_s": 42},
    ),
    "just before grace, proxying for long": Case(
        {"phase": "inactive", "for_s": GRACE - 1, "service": proxying(GRACE)}, 0, 0
    ),
    "the probe failed": Case({"phase": "inactive", "for_s": GRACE, "probed": False}, 0, None, True),
    "activating": Case({"phase": "activating", "for_s": DEADLINE / 2}, -1, None, True),
    "activating for too long": Case({"phase": "activating", "for_s": DEADLINE + 1}, 0, 0),
    "activating for longer than its own deadline": Case(
        {"phase": "activating", "for_s": 36}, 0, 0, False, {"start_deadline_s": 35}
    ),
    "min-scale before grace": Case({"phase": "inactive", "for_s": GRACE - 1}, 2, 2, False, {"min": 2}),
    "min-scale after grace": Case({"phase": "inactive", "for_s": GRACE}, 2, 2, False, {"min": 2}),
    "unreachable: no retention": Case(
        {"phase": "inactive", "for_s": GRACE}, 0, 0, False, {"retention_s": 10 * GRACE, "reachable": False}
    ),
    "unreachable, before grace": Case(
        {"phase": "inactive", "for_s": GRACE - 1}, 0, None, True, {"retention_s": 600, "reachable": False}
    ),
    "unreachable: no min-scale": Case(
        {"phase": "inactive", "for_s": GRACE}, 0, 0, False, {"min": 2, "reachable": False}
    ),
    "up": Case({"desired": 10}, 10, 10),
    "up to max-scale": Case({"desired": 10}, 8, 8, False, {"max": 8}),
    "up while inactive": Case({"phase": "inactive", "for_s": GRACE / 2, "desired": 10}, 10, 10),
    "not from zero without metrics": Case({"phase": "inactive", "desired": -1}, -1, None),
    "from zero": Case({"phase": "inactive", "desired": 1}, 1, 1),
    "unknown while active": Case({"phase": "active", "desired": -1, "ready": 12}, -1, None),
    "initial scale was attained": Case(
        {"phase": "active", "for_s": 120, "initialized": True}, 1, 1, True, {"initial": 2}
    ),
    "initial scale overrides": Case({"desired": 1}, 2, 2, False, {"initial": 2}),
    "initial scale above max-scale": Case({"desired": 1}, 5, 5, False, {"initial": 5, "max": 2}),
    "initial scale zero": Case({"phase": "inactive"}, 0, None, True, {"initial": 0}),
    "unreachable ignores the initial scale": Case(
        {"phase": "active", "for_s": 120}, 1, 1, True, {"initial": 2, "reachable": False}
    ),
    "to-zero disabled": Case({"phase": "active"}, 1, 1, False, {"to_zero": False}),
    "to-zero disabled, min-scale": Case({"phase": "active"}, 2, 2, False, {"to_zero": False, "min": 2}),
    "to-zero disabled, unknown": Case(
        {"phase": "active", "desired": -1}, -1, None, False, {"to_zero": False}
    ),
}


@pytest.mark.parametrize("case", SCALER.values(), ids=SCALER)
def test_scaler(case: Case) -> None:
    outcome = decide(replace(SPEC, **case.spec), **case.given)
    assert (outcome.want, outcome.scale, outcome.recheck_s is not None) == (
        case.want,
        case.scale,
        case.recheck,
    )


@pytest.mark.parametrize(
    ("phase", "desired", "changes", "needed"),
    [
        ("inactive", 0, {}, True),
        ("inactive", 0, {"target_burst_capacity": -1}, False),
        ("inactive", 0, {"min": 1}, False),
        ("inactive", 0, {"min": 1, "reachable": False}, True),
        ("inactive", 0, {"to_zero": False}, False),
        ("inactive", 1, {}, False),
        ("inactive", -1, {}, False),
        ("active", 0, {}, False),
        ("activating", 0, {}, False),
    ],
)
def test_when_the_public_service_is_probed(
    phase: Phase, desired: int, changes: dict[str, Any], needed: bool
) -> None:
    assert needs_probe(replace(SPEC, **changes), Known(phase, NOW), Wanted(desired)) is needed


class Row(NamedTuple):
    """One of TestReconcile, as far as it decides something."""

    given: dict[str, Any]
    phase: Phase
    mode: Mode
    activators: int
    want: int
    initialized: bool = True
    spec: dict[str, Any] = {}  # noqa: RUF012
    timed_out: bool = False


OLD = 3600.0
UNDER, DEFAULT, OVER = 10, 11, 12
MIN = {"min": DEFAULT}
ZERO = {"initial": 0}
RECONCILE = {
    "steady state": Row({"phase": "active", "desired": 11, "ready": 1}, "active", Mode.SERVE, 3, 11),
    "pa activates": Row(
        {"phase": "inactive", "desired": 11, "initialized": True, "service": PROXY},
        "activating", Mode.SERVE, 2, 11,
    ),
    "min-scale not reached, reachable": Row(
        {"desired": 11, "ready": 1}, "activating", Mode.SERVE, 3, 11, False, {"min": 2}
    ),
    "min-scale not reached, unreachable": Row(
        {"desired": 11, "ready": 1}, "active", Mode.SERVE, 3, 11, True, {"min": 2, "reachable": False}
    ),
    "min-scale reached": Row({"desired": 11, "ready": 2}, "active", Mode.SERVE, 3, 11, True, {"min": 2}),
    "steady not serving": Row(
        {"phase": "inactive", "for_s": OLD, "initialized": True, "service": PROXY},
        "inactive", Mode.PROXY, 2, 0,
    ),
    "from serving to proxy": Row(
        {"phase": "active", "for_s": OLD, "ready": 1}, "inactive", Mode.PROXY, 3, 0
    ),
    "to zero, not idle for long enough": Row(
        {"phase": "active", "ready": 1, "initialized": True}, "active", Mode.SERVE, 3, 1
    ),
    "activation failure": Row(
        {"phase": "activating", "for_s": OLD, "ready": 1}, "inactive", Mode.PROXY, 3, 0, timed_out=True
    ),
    "unknown, too few, inactive": Row(
        {"phase": "inactive", "desired": -1, "ready": UNDER, "initialized": True, "service": PROXY},
        "inactive", Mode.PROXY, 3, -1, True, MIN,
    ),
    "wanted, too few, inactive": Row(
        {"phase": "inactive", "desired": 1, "ready": UNDER, "initialized": True, "service": PROXY},
        "activating", Mode.SERVE, 3, 11, True, MIN,
    ),
    "wanted, too few, activating": Row(
        {"phase": "activating", "desired": 2, "ready": UNDER}, "activating", Mode.SERVE, 3, 11, False, MIN
    ),
    "wanted, too few, active": Row(
        {"phase": "active", "desired": 11, "ready": UNDER, "initialized": True},
        "activating", Mode.SERVE, 3, 11, True, MIN,
    ),
    "wanted, too many, inactive": Row(
        {"phase": "inactive", "desired": 0, "ready": OVER, "initialized": True, "service": PROXY},
        "active", Mode.SERVE, 4, 11, True, MIN,
    ),
    "wanted, too many, active": Row(
        {"phase": "active", "desired": OVER, "ready": OVER, "initialized": True},
        "active", Mode.SERVE, 4, 12, True, MIN,
    ),
    "down to min-scale, active": Row(
        {"phase": "active", "desired": 1, "ready": OVER, "initialized": True},
        "active", Mode.SERVE, 4, 11, True, MIN,
    ),
    "unknown, too many, inactive": Row(
        {"phase": "inactive", "desired": -1, "ready": OVER, "initialized": True},
        "inactive", Mode.PROXY, 4, -1, True, MIN,
    ),
    "unknown, enough, active": Row(
        {"phase": "active", "desired": -1, "ready": OVER, "initialized": True},
        "active", Mode.PROXY, 4, -1, True, MIN,
    ),
    "unknown, too few, active": Row(
        {"phase": "active", "desired": -1, "ready": UNDER, "initialized": True},
        "activating", Mode.PROXY, 3, -1, True, MIN,
    ),
    "scaled to zero, no data": Row(
        {"phase": "inactive", "desired": -1, "initialized": True, "service": PROXY},
        "inactive", Mode.PROXY, 2, -1,
    ),
    "steady, not enough capacity": Row(
        {"phase": "active", "desired": 11, "excess": -42, "ready": 1}, "active", Mode.PROXY, 3, 11
    ),
    "traffic increased": Row(
        {"phase": "active", "desired": 11, "excess": -18, "ready": 1}, "active", Mode.PROXY, 3, 11
    ),
    "traffic decreased": Row(
        {"phase": "active", "desired": 11, "excess": 1, "ready": 1, "service": PROXY},
        "active", Mode.SERVE, 3, 11,
    ),
    "initial scale above min-scale, not reached": Row(
        {"desired": 11, "excess": -42, "ready": DEFAULT, "service": PROXY},
        "activating", Mode.PROXY, 4, 20, False, {"min": 11, "initial": 20},
    ),
    "initial scale reached": Row(
        {"desired": 11, "excess": -42, "ready": 20, "service": PROXY},
        "active", Mode.PROXY, 4, 20, True, {"initial": 20},
    ),
    "initial scale zero: to zero": Row(
        {"desired": -1, "service": PROXY}, "inactive", Mode.PROXY, 2, -1, True, ZERO
    ),
    "initial scale zero: no public service yet": Row(
        {"desired": -1, "service": replace(PROXY, public="")}, "inactive", Mode.PROXY, 2, -1, False, ZERO
    ),
    "initial scale zero: stays": Row(
        {"desired": -1, "initialized": True, "service": replace(PROXY, public="")},
        "activating", Mode.PROXY, 2, -1, True, ZERO,
    ),
    "initial scale zero: above zero": Row(
        {"desired": 2, "excess": -42, "ready": 2, "initialized": True, "service": PROXY},
        "active", Mode.PROXY, 3, 2, True, ZERO,
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", RECONCILE.values(), ids=RECONCILE)
def test_reconcile(row: Row) -> None:
    outcome = decide(replace(SPEC, **row.spec), **row.given)
    assert (outcome.phase, outcome.mode, outcome.activators, outcome.want) == (
        row.phase,
        row.mode,
        row.activators,
        row.want,
    )
    assert (outcome.initialized, outcome.timed_out) == (row.initialized, row.timed_out)


@pytest.mark.parametrize(
    ("phase", "initial", "initialized", "result"),
    [
        ("active", 1, True, "activating"),
        ("activating", 1, False, "activating"),
        ("inactive", 1, True, "inactive"),
        ("activating", 0, False, "inactive"),
        ("activating", 0, True, "activating"),
    ],
)
def test_before_there_is_a_service(phase: Phase, initial: int, initialized: bool, result: Phase) -> None:
    outcome = without_service(replace(SPEC, initial=initial), Known(phase, NOW, initialized))
    assert (outcome.phase, outcome.mode, outcome.activators) == (result, Mode.PROXY, 2)
    assert (outcome.scale, outcome.want, outcome.initialized) == (None, -1, initialized)


@pytest.mark.parametrize(
    ("ready", "tbc", "total", "count"),
    [
        (0, 200, 100, 2),
        (1, 200, 100, 3),
        (5, -1, 100, 5),
        (15, 200, 100, 17),
        (100, 0, 100, 2),
        (0, -1, 1, 2),
    ],
)
def test_how_many_activators(ready: int, tbc: float, total: float, count: int) -> None:
    assert activators(replace(SPEC, target_burst_capacity=tbc, total=total), ready, 100) == count


specs = st.builds(
    lambda low, extra, initial, reachable, to_zero, retention: replace(
        SPEC,
        min=low,
        max=low + extra if extra else 0,
        initial=initial,
        reachable=reachable,
        to_zero=to_zero,
        retention_s=retention,
    ),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 6),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 100.0]),
)
phases: st.SearchStrategy[Phase] = st.sampled_from(["active", "inactive", "activating"])
services = st.sampled_from([SERVE, PROXY, proxying(10), proxying(1000)])


@given(
    specs,
    phases,
    st.floats(0, 1000),
    st.integers(-1, 12),
    st.integers(-5, 5),
    st.integers(0, 12),
    st.booleans(),
    services,
    st.booleans(),
)
def test_whatever_comes(
    spec: ScalingSpec,
    phase: Phase,
    for_s: float,
    desired: int,
    excess: int,
    ready: int,
    initialized: bool,
    service: Service,
    probed: bool,
) -> None:
    outcome = decide(spec, phase, for_s, desired, excess, ready, initialized, service, probed)
    if outcome.scale is not None:
        assert outcome.scale >= (spec.min if spec.reachable else 0)
        assert not spec.max or outcome.scale <= max(spec.max, spec.initial)
        assert outcome.want == outcome.scale
    if outcome.scale == 0:
        assert spec.to_zero
        assert phase != "active", "first inactive, then gone"
        assert phase == "activating" or probed or spec.target_burst_capacity == -1
    assert outcome.mode is Mode.PROXY or (outcome.want > 0 and excess >= 0)
    assert outcome.initialized >= initialized
    assert outcome.recheck_s is None or outcome.recheck_s > 0
    if outcome.want == 0:
        assert outcome.phase == "inactive"
