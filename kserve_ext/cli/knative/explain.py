"""What `galaxy explain NAME` says in a Kubernetes cluster: how a revision was woken, step by step, or why otherwise.

Everything is in objects: conditions and the last starts in the status of its PodAutoscaler, and Events. Looked up,
then pictured.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from kserve_ext.api.knative.conditions import find, text_map
from kserve_ext.api.knative.pa import UNDERSTOOD
from kserve_ext.api.standby import names
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.knative.session import run
from kserve_ext.cli.output import section
from kserve_ext.cli.waterfall import WORDS
from kserve_ext.kube.client import Client, KubeError, KubeObject, NotFound
from kserve_ext.kube.kinds import EVENTS, INFERENCE_SERVICES, KNATIVE_SERVICES, POD_AUTOSCALERS

Document = dict[str, Any]
CONDITIONS: Final = (names.STANDBY_USED, names.STANDBY_READY, UNDERSTOOD, "Active")
_KNOWN: Final = {**WORDS["node"], "ready": "its server is ready"}


def look(context: str, namespace: str, name: str) -> Document:
    """Of a revision, or of the latest one of a Knative Service or an InferenceService."""
    return run(context, lambda client: find_out(client, namespace, name))


async def find_out(client: Client, namespace: str, name: str) -> Document:
    """Raises Failure where there is none of that name, KubeError."""
    pa, newer = await _autoscaler(client, namespace, name), ""
    if pa is None:
        revision, newer = await _latest(client, namespace, name)
        pa = await _autoscaler(client, namespace, revision) if revision else None
    if pa is None:
        raise Failure(
            f"there is no revision, Knative Service or InferenceService {name} in {namespace}",
            "or it has no revision yet",
            "kubectl get revisions -A shows all; name the namespace with -n",
        )
    revision = str(pa["metadata"]["name"])
    try:
        listed = await client.list(EVENTS, namespace, fields=f"involvedObject.name={revision}")
        events: list[KubeObject] | str = listed.items
    except KubeError as error:
        events = str(error)
    return facts_of(pa, events, newer)


def facts_of(pa: KubeObject, events: list[KubeObject] | str, newer: str = "") -> Document:
    """`events`: or why they can't be listed; `newer`: a revision of the same service that isn't ready."""
    status = pa.get("status") or {}
    try:
        starts = json.loads(text_map(status.get("annotations")).get(names.STARTS, "[]"))
    except ValueError:
        starts = []
    return {
        "revision": f"{pa['metadata']['namespace']}/{pa['metadata']['name']}",
        "newer": newer,
        "wanted": status.get("desiredScale"),
        "ready": status.get("actualScale"),
        "standby": text_map(pa["metadata"].get("annotations")).get(names.SIZE, "0"),
        "opted_in": text_map(pa["metadata"].get("annotations")).get(names.ENGINE) == "galaxy",
        "conditions": [c for kind in CONDITIONS if (c := find(status.get("conditions"), kind)) is not None],
        "starts": starts if isinstance(starts, list) else [],
        "events": _events(events) if not isinstance(events, str) else [],
        "events_unseen": events if isinstance(events, str) else "",
    }


def lines(facts: Document) -> list[str]:
    known = isinstance(facts["wanted"], int) and facts["wanted"] >= 0
    wanted = f"{facts['wanted']} wanted" if known else "how many are wanted isn't known yet"
    found = [f"revision {facts['revision']}: {facts['ready'] or 0} pods ready, {wanted}"]
    if facts["newer"]:
        namespace = facts["revision"].partition("/")[0]
        found.append(f"There is a newer one that isn't ready: galaxy explain {facts['newer']} -n {namespace}")
    rows = [
        (c["type"], c["status"], c.get("reason", ""), c.get("lastTransitionTime", ""), c.get("message", ""))
        for c in facts["conditions"]
    ]
    found.append(section("What is said of it", ("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"), rows))
    for start in reversed(facts["starts"]):
        found += _start(start)
    if not facts["starts"]:
        found.append(f"\nNo standby pod has served it lately: {_why_none(facts)}")
    events = [(e["at"], e["type"], e["reason"], e["count"], e["message"]) for e in facts["events"]]
    found.append(section("Events", ("LAST", "TYPE", "REASON", "TIMES", "MESSAGE"), events))
    if facts["events_unseen"]:
        found.append(f"Events can't be listed: {facts['events_unseen']}")
    return "\n".join(found).splitlines()


# --- inside


def _why_none(facts: Document) -> str:
    if facts["standby"] in ("", "0"):
        return "it wishes for none"
    if not facts["opted_in"]:
        return f"{names.SIZE} does nothing without {names.ENGINE}: galaxy"
    if any(c["type"] == names.STANDBY_USED for c in facts["conditions"]):
        return f"see the condition {names.STANDBY_USED} for why"
    return "as far as is known it has needed none yet"


def _start(start: Mapping[str, Any]) -> list[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(start.get("at") or 0)))
    level, used = start.get("level", ""), start.get("from", "")
    how = (
        f"level {used}"
        if used == level
        else f"level {used}, not its own {level}: {start.get('why') or 'it does not say'}"
    )
    found = [
        f"\nStandby pod {start.get('pod')} on node {start.get('node')}, taken at {at}, {how}",
        f"{'at ms':>9}  what",
    ]
    marks = [
        (start.get("accepted_ms"), "its node's agent has accepted"),
        *((ms, _KNOWN.get(name, str(name).replace("_", " "))) for name, ms in start.get("steps_ms") or ()),
        (start.get("serving_ms"), "the autoscaler has heard that it serves"),
        (start.get("own_ms"), "it has the revision's labels"),
    ]
    known = [(ms, what) for ms, what in marks if isinstance(ms, int)]
    return found + [f"{ms:9d}  {what}" for ms, what in sorted(known, key=lambda mark: mark[0])]


def _events(events: Iterable[KubeObject]) -> list[Document]:
    """Ours, the latest last."""
    found = [
        {
            "at": str(event.get("lastTimestamp") or event.get("eventTime") or ""),
            "type": event.get("type", ""),
            "reason": str(event.get("reason", "")),
            "count": int(event.get("count") or 1),
            "message": str(event.get("message", "")),
        }
        for event in events
    ]
    return sorted((e for e in found if e["reason"].startswith("Standby")), key=lambda e: e["at"])


async def _autoscaler(client: Client, namespace: str, name: str) -> KubeObject | None:
    try:
        return await client.get(POD_AUTOSCALERS, namespace, name)
    except NotFound:
        return None


async def _latest(client: Client, namespace: str, name: str) -> tuple[str, str]:
    """The revision that was ready last, or made last if none was, and a later one that isn't; "" = there is none."""

    async def of(kind: Any) -> Document:
        try:
            return (await client.get(kind, namespace, name)).get("status") or {}
        except NotFound:
            return {}

    service, inference = await asyncio.gather(of(KNATIVE_SERVICES), of(INFERENCE_SERVICES))
    predictor = (inference.get("components") or {}).get("predictor") or {}
    for status in (service, predictor):
        ready = str(status.get("latestReadyRevisionName") or status.get("latestReadyRevision") or "")
        made = str(status.get("latestCreatedRevisionName") or status.get("latestCreatedRevision") or "")
        if ready or made:
            return ready or made, made if ready and made != ready else ""
    return "", ""
