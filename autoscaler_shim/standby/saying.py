"""What people hear of a revision and its standby pods: conditions and notes of its PodAutoscaler, and Events.

Beside the plans and behind them: nothing waits for any of this. What is said of slots is core/standby/wakes.py's;
here it goes to where people look, Events on the Revision and, of what is amiss, on its Knative Service.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, Final

from kserve_ext.api.knative.conditions import FALSE, TRUE, Condition, Document, find, text_map
from kserve_ext.api.knative.pa import SERVICE_LABEL
from kserve_ext.api.standby import names
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.adoption import Adoption, Plan
from kserve_ext.core.standby.known import Known, Seen
from kserve_ext.core.standby.pools import NOT_UP
from kserve_ext.core.standby.wakes import Told, Wake, Wakes
from kserve_ext.kube.events import About, Events, owner_of

READY: Final = names.STANDBY_READY
USED: Final = names.STANDBY_USED
_SERVICE_UID: Final = "serving.knative.dev/serviceUID"
#: What the kubelet calls a state of a container.
_WORD: Final = re.compile(r"([A-Z][a-z]+){2,}$")


class Saying:
    def __init__(
        self, known: Known, events: Events, autoscaler_of: Callable[[RevisionKey], Document | None]
    ) -> None:
        """`autoscaler_of`: the PodAutoscaler of a revision, None while it isn't known."""
        self._known = known
        self._events = events
        self._autoscaler_of = autoscaler_of
        self.wakes = Wakes()
        self._problems: dict[RevisionKey, str] = {}

    # --- of a revision

    def conditions(
        self, revision: RevisionKey, pa: Document, problem: str, unfit: bool, amiss: bool = True
    ) -> tuple[Condition, ...]:
        """`problem`: why it is not to be had from standby pods as it wishes, "" = it is; `unfit`: by none, ever;
        `amiss`: people should hear of it, even those who don't look."""
        found = []
        reason = cause(problem, unfit) if problem else ""
        if problem:
            found.append(Condition(READY, FALSE, reason, problem, "Warning" if amiss else "Info"))
        news = (problem.partition(NOT_UP)[2] or problem) if amiss else ""
        if news != self._problems.get(revision, ""):
            self._problems[revision] = news
            if news:
                self._tell(revision, f"Standby{reason}", problem, good=False)
        told = self.wakes.told(revision)
        if told is not None:
            severity = "Info" if told.good else "Warning"
            found.append(Condition(USED, TRUE if told.served else FALSE, told.reason, told.message, severity))
        elif (former := find((pa.get("status") or {}).get("conditions"), USED)) is not None:
            # Of one who has had this bucket before.
            words = (
                str(former.get(field) or "") for field in ("type", "status", "reason", "message", "severity")
            )
            found.append(Condition(*words))
        return tuple(found)

    def notes(self, revision: RevisionKey) -> tuple[tuple[str, str], ...]:
        slots = [_document(wake) for wake in self.wakes.slots(revision)]
        return ((names.STARTS, json.dumps(slots, separators=(",", ":"))),) if slots else ()

    def forget(self, exists: Callable[[RevisionKey], bool]) -> None:
        """Drops what is kept of what is no more; now and then."""
        for revision in {*self._problems, *self.wakes.revisions()}:
            if not exists(revision):
                self._problems.pop(revision, None)
                self.wakes.forget(revision)

    # --- what happens

    def took(self, revision: RevisionKey, seen: Seen, now: float) -> None:
        self.wakes.took(revision, seen, now, time.time())

    def accepted(self, revision: RevisionKey, uid: str, now: float) -> None:
        self.wakes.accepted(revision, uid, now)

    def refused(self, revision: RevisionKey, uid: str, why: str) -> None:
        self._news(revision, self.wakes.refused(revision, uid, why))

    def unanswered(self, revision: RevisionKey, uid: str, why: str) -> None:
        self._news(revision, self.wakes.unanswered(revision, uid, why))

    def failed(self, revision: RevisionKey, uid: str, pod: str, why: str) -> None:
        self._news(revision, self.wakes.failed(revision, uid, pod, why))

    def planned(self, adoption: Adoption, plan: Plan, now: float) -> None:
        """Slots that have come to serve, those that are its own by now, and what none was found for."""
        revision = adoption.revision
        for uid, taken in adoption.taken.items():
            seen = self._known.slots.get(uid)
            if taken.serving_since is not None and seen is not None:
                self._news(revision, self.wakes.serves(revision, uid, seen.slot.started, taken.serving_since))
        for uid in self._known.of_revision(revision):
            pod = self._known.pods.get(uid)
            if pod is not None and pod.revision == revision:
                self.wakes.own(revision, uid, now)
        if plan.missed:
            self._news(revision, self.wakes.missed(revision, plan.why, plan.missed))

    # --- inside

    def _news(self, revision: RevisionKey, told: Told | None) -> None:
        if told is not None:
            self._tell(revision, f"Standby{told.reason}", told.message, good=told.good)

    def _tell(self, revision: RevisionKey, reason: str, message: str, *, good: bool) -> None:
        pa = self._autoscaler_of(revision)
        about = owner_of(pa, "Revision") if pa is not None else None
        if pa is None or about is None:
            return
        self._events.tell(about, "Normal" if good else "Warning", reason, message)
        labels = text_map(pa["metadata"].get("labels"))
        service, uid = labels.get(SERVICE_LABEL, ""), labels.get(_SERVICE_UID, "")
        if service and uid and not good:
            whole = About(about.api_version, "Service", about.namespace, service, uid)
            self._events.tell(whole, "Warning", reason, f"revision {about.name}: {message}")


def _document(wake: Wake) -> dict[str, Any]:
    started = wake.started
    return {
        "pod": wake.pod,
        "node": wake.node,
        "level": wake.level,
        "from": wake.used,
        "why": started.why if started is not None else "",
        "at": round(wake.at, 3),
        "accepted_ms": wake.accepted_ms,
        "steps_ms": [list(step) for step in started.steps] if started is not None else [],
        "serving_ms": wake.serving_ms,
        "own_ms": wake.own_ms,
    }


def cause(problem: str, unfit: bool) -> str:
    """The reason of a condition: one word for why no standby pod is to be had."""
    if unfit:
        return "RevisionUnfit"
    if names.LEVEL in problem:
        return "EngineNotAsleep"
    said = problem.partition(NOT_UP)[2]
    word = said.partition(":")[0]
    if word == "no node":
        return "NoNode"
    if _WORD.match(word):
        return word  # the kubelet's own
    if "zygote" in said:
        return "ZygoteFails"
    if "no slot" in said or "heard of its slot" in said:
        return "NoSlot"
    return "PodsRefused" if "refused by the API server" in said else "PoolNotReady"
