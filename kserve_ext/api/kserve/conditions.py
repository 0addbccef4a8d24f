"""The status of an InferenceService, in KServe's own fields: conditions, modelStatus, components, url.

From what was decided (runtime, rollout, problems) and what the homes say of the revisions. At zero is ready: a
request starts it. Matches inference_service_status.go (names of conditions, states and failure reasons); a
condition's lastTransitionTime moves only when its status does. Never decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kserve_ext.api.kserve import kv_transfer
from kserve_ext.api.kserve.kv_transfer import Verdict
from kserve_ext.api.kserve.rollout import Observed, Rollout
from kserve_ext.api.problems import Problem
from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import RevisionKey

Document = dict[str, Any]
TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
#: Reasons of lastFailureInfo that KServe has.
INVALID: Final = "InvalidPredictorSpec"


class Outcome(NamedTuple):
    """What the reconciler knows of one service."""

    rollout: Rollout
    revision: Revision | None  # the rendered one; None = invalid
    runtime_field: tuple[str, str] = ("", "")  # clusterServingRuntimeName | servingRuntimeName, and its value
    failure: str = ""  # KServe's failure reason, "" = none
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    stopped: bool = False
    url: str = ""
    address: str = ""
    incomplete: str = ""  # why its group cannot serve yet
    too_large: str = ""  # why no node of the cluster could run an instance of the rendered one
    kv_transfer: Verdict | None = None  # of a service in a group that is whole

    @property
    def message(self) -> str:
        return "; ".join(str(problem) for problem in self.problems)


def status(
    outcome: Outcome, observed: Mapping[RevisionKey, Observed], before: Document, generation: int, now: str
) -> Document:
    """The new status; `before` is the old one, for transition times and the last failure."""
    rollout = outcome.rollout
    serving = observed.get(rollout.serving, Observed()) if rollout.serving else None
    latest = observed.get(rollout.latest, Observed()) if rollout.latest else None
    conditions = _conditions(outcome, serving, latest)
    result: Document = {
        "observedGeneration": generation,
        "deploymentMode": "Knative",
        "conditions": _dated(conditions, before.get("conditions") or [], now),
        "components": {"predictor": _component(outcome)},
        "modelStatus": _model_status(outcome, serving, latest, before.get("modelStatus") or {}, now),
    }
    if outcome.runtime_field[0]:
        result[outcome.runtime_field[0]] = outcome.runtime_field[1]
    if outcome.url and rollout.serving:
        result["url"] = outcome.url
        result["address"] = {"url": outcome.address}
    return result


def ready(status: Document) -> tuple[str, str]:
    """Status of the Ready condition, and what to say of it."""
    return of(status, "Ready")


def why(status: Document) -> str:
    """What is not as it should be: why it is not ready, else why its newest revision has no traffic."""
    for name in ("Ready", "LatestDeploymentReady"):
        state, message = of(status, name)
        if state != TRUE and message:
            return message
    return ""


def of(status: Document, name: str) -> tuple[str, str]:
    """Status of one condition, and what to say of it."""
    for condition in status.get("conditions") or []:
        if condition["type"] == name:
            return condition["status"], condition.get("message") or condition.get("reason") or ""
    return UNKNOWN, ""


class _Condition(NamedTuple):
    type: str
    status: str
    reason: str = ""
    message: str = ""


def _conditions(outcome: Outcome, serving: Observed | None, latest: Observed | None) -> list[_Condition]:
    predictor = _predictor(outcome, serving, latest)
    ingress = _Condition("IngressReady", TRUE)
    if outcome.stopped:
        ingress = _Condition("IngressReady", FALSE, "Stopped", "annotation serving.kserve.io/stop is true")
    elif outcome.rollout.serving is None:
        ingress = _Condition("IngressReady", FALSE, "NoRevision", "no revision has been made yet")
    elif not outcome.url:
        ingress = _Condition(
            "IngressReady", TRUE, "InGroup", "clients talk to the decode service of the group"
        )
    rolled_out = outcome.rollout.latest == outcome.rollout.serving and not outcome.problems
    deployment = _Condition("LatestDeploymentReady", TRUE)
    if not rolled_out:
        why = outcome.message or f"waiting for revision {outcome.rollout.latest or ''} to be ready"
        if latest is not None and latest.reason and not outcome.problems:
            why = latest.reason
        elif outcome.too_large:
            why = _unschedulable(outcome)
        blocked = bool(outcome.problems or outcome.too_large or (latest is not None and latest.reason))
        state = FALSE if blocked else UNKNOWN
        reason = outcome.failure or ("RevisionFailed" if blocked else "RollingOut")
        deployment = _Condition("LatestDeploymentReady", state, reason, why)
    worst = next((c for c in (predictor, ingress) if c.status == FALSE), None) or next(
        (c for c in (predictor, ingress) if c.status == UNKNOWN), None
    )
    overall = worst._replace(type="Ready") if worst else _Condition("Ready", TRUE)
    found = [predictor, ingress, deployment, overall]
    if outcome.kv_transfer is not None and not outcome.stopped:
        found.append(_Condition(kv_transfer.TYPE, *outcome.kv_transfer))
    if outcome.stopped:
        found.append(_Condition("Stopped", TRUE, "Stopped"))
    return found


def _predictor(outcome: Outcome, serving: Observed | None, latest: Observed | None) -> _Condition:
    name = "PredictorReady"
    if outcome.stopped:
        return _Condition(name, FALSE, "Stopped", "annotation serving.kserve.io/stop is true")
    if outcome.problems:
        return _Condition(name, FALSE, outcome.failure or INVALID, outcome.message)
    if outcome.incomplete:
        return _Condition(name, FALSE, "GroupIncomplete", outcome.incomplete)
    newest = outcome.rollout.serving == outcome.rollout.latest
    if outcome.too_large and newest and (serving is None or not serving.ready):
        return _Condition(name, FALSE, "Unschedulable", _unschedulable(outcome))
    if serving is None:
        return _Condition(name, UNKNOWN, "NoRevision", "no revision has been made yet")
    if serving.ready:
        return _Condition(name, TRUE)
    if serving.reason:
        return _Condition(name, FALSE, _failure(serving), serving.reason)
    if serving.starting or serving.desired:
        return _Condition(name, UNKNOWN, "Starting", f"{serving.desired} wanted, none ready yet")
    if outcome.rollout.serving_min > 0:
        return _Condition(name, UNKNOWN, "Starting", "waiting for its first instance")
    return _Condition(name, TRUE, "AtZero", "no instance runs; a request starts one")


def _unschedulable(outcome: Outcome) -> str:
    return f"{outcome.too_large}: lower the service's resources or add a larger node"


def _failure(observed: Observed) -> str:
    return "ModelLoadFailed" if observed.permanent else "RuntimeUnhealthy"


def _dated(conditions: Sequence[_Condition], before: Sequence[Document], now: str) -> list[Document]:
    old = {c["type"]: c for c in before}
    dated = []
    for condition in conditions:
        last = old.get(condition.type)
        kept = last is not None and last["status"] == condition.status
        entry: Document = {"type": condition.type, "status": condition.status}
        if condition.reason:
            entry["reason"] = condition.reason
        if condition.message:
            entry["message"] = condition.message
        entry["lastTransitionTime"] = last["lastTransitionTime"] if last and kept else now
        dated.append(entry)
    return dated


def _component(outcome: Outcome) -> Document:
    rollout = outcome.rollout
    entry: Document = {}
    if rollout.latest:
        entry["latestCreatedRevision"] = _name(rollout.latest)
    if rollout.ready:
        entry["latestReadyRevision"] = entry["latestRolledoutRevision"] = _name(rollout.ready)
    if rollout.serving:
        newest = rollout.serving == rollout.latest
        entry["traffic"] = [
            {"revisionName": _name(rollout.serving), "percent": 100, "latestRevision": newest}
        ]
        if outcome.url:
            entry["url"] = outcome.url
    return entry


def _name(key: RevisionKey) -> str:
    return key.partition("/")[2]


def _model_status(
    outcome: Outcome, serving: Observed | None, latest: Observed | None, before: Document, now: str
) -> Document:
    active, target = _state(serving), _state(latest)
    failed = latest is not None and bool(latest.reason) and not latest.ready
    transition = "UpToDate"
    if outcome.problems:
        transition = "InvalidSpec"
    elif failed:
        transition = "BlockedByFailedLoad"
    elif outcome.rollout.latest != outcome.rollout.serving or target in ("Pending", "Loading"):
        transition = "InProgress"
    copies = serving or Observed()
    result: Document = {
        "transitionStatus": transition,
        "states": {"activeModelState": active, "targetModelState": target},
        "copies": {"failedCopies": copies.failed, "totalCopies": copies.ready},
    }
    info: Document | None = before.get("lastFailureInfo")
    if outcome.problems:
        info = {"reason": outcome.failure or INVALID, "message": outcome.message}
    elif failed and latest is not None and outcome.rollout.latest:
        info = {
            "reason": _failure(latest),
            "message": latest.reason,
            "modelRevisionName": _name(outcome.rollout.latest),
        }
    if info:
        old = before.get("lastFailureInfo") or {}
        same = {k: old.get(k) for k in ("reason", "message")} == {
            k: info.get(k) for k in ("reason", "message")
        }
        result["lastFailureInfo"] = {**info, "time": old["time"] if same and "time" in old else now}
    return result


def _state(observed: Observed | None) -> str:
    if observed is None:
        return "Pending"
    if observed.ready:
        return "Loaded"
    if observed.reason:
        return "FailedToLoad"
    return "Loading" if observed.starting or observed.desired else "Standby"
