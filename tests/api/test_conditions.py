"""The status that people read: what each situation looks like in KServe's fields."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.api.kserve.conditions import Outcome, ready, status, why
from kserve_ext.api.kserve.rollout import Observed, Rollout
from kserve_ext.api.problems import Problem
from kserve_ext.core.facts import Command, Model, Resources, Revision, Scale
from kserve_ext.core.ids import RevisionKey

ONE, TWO = RevisionKey("default/tiny-predictor-00001"), RevisionKey("default/tiny-predictor-00002")
URL = "http://tiny.default.galaxy.local"


def revision() -> Revision:
    return Revision(ONE, "default/tiny", 1, Command(("a",)), Model(), Resources(), Scale())


def made(**kw: Any) -> Outcome:
    base = Outcome(Rollout(1, ONE, "f", ONE), revision(), url=URL, address="http://127.0.0.1:8080")
    return base._replace(**kw)


def conditions(document: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: f"{c['status']}:{c.get('reason', '')}" for c in document["conditions"]}


CASES = [
    ("at zero", made(), {}, "True:AtZero", "True:", "UpToDate", "Standby"),
    ("ready", made(), {ONE: Observed(2, 2)}, "True:", "True:", "UpToDate", "Loaded"),
    (
        "starting",
        made(),
        {ONE: Observed(1, 0, 1)},
        "Unknown:Starting",
        "Unknown:Starting",
        "InProgress",
        "Loading",
    ),
    (
        "min-scale",
        made(rollout=Rollout(1, ONE, "f", ONE, latest_min=1, serving_min=1)),
        {},
        "Unknown:Starting",
        "Unknown:Starting",
        "UpToDate",
        "Standby",
    ),
    (
        "broken",
        made(),
        {ONE: Observed(1, 0, 0, 1, "bad flag", True)},
        "False:ModelLoadFailed",
        "False:ModelLoadFailed",
        "BlockedByFailedLoad",
        "FailedToLoad",
    ),
    (
        "no room",
        made(),
        {ONE: Observed(1, reason="cpu: needs 64000m")},
        "False:RuntimeUnhealthy",
        "False:RuntimeUnhealthy",
        "BlockedByFailedLoad",
        "FailedToLoad",
    ),
    (
        "invalid",
        Outcome(Rollout(), None, failure="NoSupportingRuntime", problems=(Problem("f", "w", "r"),)),
        {},
        "False:NoSupportingRuntime",
        "False:NoSupportingRuntime",
        "InvalidSpec",
        "Pending",
    ),
    (
        "group",
        made(incomplete="no prefill"),
        {},
        "False:GroupIncomplete",
        "False:GroupIncomplete",
        "UpToDate",
        "Standby",
    ),
    (
        "too large",
        made(too_large="no node is large enough"),
        {},
        "False:Unschedulable",
        "False:Unschedulable",
        "UpToDate",
        "Standby",
    ),
    (
        "stopped",
        made(rollout=Rollout(1), stopped=True),
        {},
        "False:Stopped",
        "False:Stopped",
        "UpToDate",
        "Pending",
    ),
]


@pytest.mark.parametrize(
    ("case", "outcome", "observed", "predictor", "overall", "transition", "state"),
    CASES,
    ids=[c[0] for c in CASES],
)
def test_situations(
    case: str,
    outcome: Outcome,
    observed: dict[RevisionKey, Observed],
    predictor: str,
    overall: str,
    transition: str,
    state: str,
) -> None:
    document = status(outcome, observed, {}, 3, "T1")
    found = conditions(document)
    assert (found["PredictorReady"], found["Ready"]) == (predictor, overall)
    if case != "stopped":
        assert document["modelStatus"]["transitionStatus"] == transition
    assert document["modelStatus"]["states"]["activeModelState"] == state
    assert document["observedGeneration"] == 3
    assert ("url" in document) == (outcome.rollout.serving is not None)


def test_a_roll_out_in_progress_keeps_the_service_ready() -> None:
    outcome = made(rollout=Rollout(2, TWO, "g", ONE, ready=ONE))
    document = status(outcome, {ONE: Observed(1, 1), TWO: Observed(1, 0, 1)}, {}, 2, "T")
    assert conditions(document) == {
        "PredictorReady": "True:",
        "IngressReady": "True:",
        "LatestDeploymentReady": "Unknown:RollingOut",
        "Ready": "True:",
    }
    predictor = document["components"]["predictor"]
    assert predictor["latestCreatedRevision"] == "tiny-predictor-00002"
    assert predictor["traffic"] == [
        {"revisionName": "tiny-predictor-00001", "percent": 100, "latestRevision": False}
    ]
    assert predictor["latestReadyRevision"] == "tiny-predictor-00001"


def test_a_failed_roll_out_at_zero_leaves_the_service_ready_and_says_why() -> None:
    outcome = made(rollout=Rollout(2, TWO, "g", ONE, latest_min=1, ready=ONE))
    document = status(outcome, {TWO: Observed(1, failed=1, reason="bad flag", permanent=True)}, {}, 2, "T")
    assert conditions(document) == {
        "PredictorReady": "True:AtZero",
        "IngressReady": "True:",
        "LatestDeploymentReady": "False:RevisionFailed",
        "Ready": "True:",
    }
    assert why(document) == "bad flag"


def test_a_roll_out_that_no_node_can_run_is_said_and_the_old_revision_stays_ready() -> None:
    outcome = made(rollout=Rollout(2, TWO, "g", ONE, ready=ONE), too_large="no node is large enough")
    document = status(outcome, {}, {}, 2, "T")
    assert conditions(document)["Ready"] == "True:"
    assert conditions(document)["LatestDeploymentReady"] == "False:RevisionFailed"
    assert why(document).startswith("no node is large enough: lower")


def test_what_was_never_ready_is_not_named_as_ready() -> None:
    predictor = status(made(), {ONE: Observed(1, 0, 1)}, {}, 1, "T")["components"]["predictor"]
    assert "latestReadyRevision" not in predictor
    assert predictor["traffic"] == [
        {"revisionName": "tiny-predictor-00001", "percent": 100, "latestRevision": True}
    ]


def test_why_is_empty_when_all_is_well() -> None:
    assert why(status(made(), {ONE: Observed(1, 1)}, {}, 1, "T")) == ""
    assert why({}) == ""


def test_transition_times_move_only_with_the_status_and_failures_are_remembered() -> None:
    broken = status(made(), {ONE: Observed(1, reason="bad flag", permanent=True)}, {}, 1, "T1")
    info = broken["modelStatus"]["lastFailureInfo"]
    assert info == {
        "reason": "ModelLoadFailed",
        "message": "bad flag",
        "modelRevisionName": "tiny-predictor-00001",
        "time": "T1",
    }
    assert ready(broken) == ("False", "bad flag")
    same = status(made(), {ONE: Observed(1, reason="bad flag", permanent=True)}, broken, 1, "T2")
    assert same == broken
    well = status(made(), {ONE: Observed(1, 1)}, same, 1, "T3")
    times = {c["type"]: c["lastTransitionTime"] for c in well["conditions"]}
    assert times == {
        "PredictorReady": "T3",
        "IngressReady": "T1",
        "LatestDeploymentReady": "T1",
        "Ready": "T3",
    }
    assert well["modelStatus"]["lastFailureInfo"] == info
