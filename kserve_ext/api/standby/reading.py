"""A standby pod as the API server has it: what of it is kept in memory, and the facts that decide."""

from __future__ import annotations

import re
from typing import Final

from kserve_ext.api.knative.conditions import Document, find, text_map, unix
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.api.standby import names, pods
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.known import NOBODY, StandbyPod

_LACKING: Final = re.compile(r"Insufficient ([\w./-]*\w)")
#: How the scheduler names a node's limit of pods, which is a resource that every pod takes one of.
_TOO_MANY: Final = "Too many pods"
#: The scheduler has looked what would be if other pods went, and on no node at all would that do: the pod asks for
#: more than a node has, or for another kind of node.
_HELPLESS: Final = re.compile(
    r"preemption: 0/\d+ nodes are available: \d+ Preemption is not helpful for scheduling\.?\s*$"
)
_ENDED: Final = ("Failed", "Succeeded")
PLACES: Final = "pods"


def slim(pod: Document) -> Document:
    metadata, status = pod["metadata"], pod.get("status") or {}
    kept = (
        *("name", "namespace", "uid", "resourceVersion", "labels", "annotations", "ownerReferences"),
        *("deletionTimestamp", "creationTimestamp"),
    )
    return {
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "node": (pod.get("spec") or {}).get("nodeName") or "",
        "status": {
            "phase": status.get("phase"),
            "podIP": status.get("podIP"),
            "message": status.get("message"),
            "reason": status.get("reason"),
            "conditions": [
                c for c in status.get("conditions") or () if c.get("type") in ("Ready", "PodScheduled")
            ],
            "states": [s.get("state") or {} for s in status.get("containerStatuses") or ()],
        },
    }


def fact(pod: Document) -> StandbyPod:
    """`pod`: slim."""
    metadata, status = pod["metadata"], pod["status"]
    labels = text_map(metadata.get("labels"))
    revision = labels.get(REVISION_LABEL)
    namespace = metadata["namespace"]
    owners = metadata.get("ownerReferences") or ()
    return StandbyPod(
        name=f"{namespace}/{metadata['name']}",
        uid=str(metadata["uid"]),
        pool=pods.key(namespace, labels.get(names.POOL_LABEL, "")),
        revision=RevisionKey(f"{namespace}/{revision}") if revision else NOBODY,
        owned=any(owner.get("controller") for owner in owners),
        ready=(find(status["conditions"], "Ready") or {}).get("status") == "True",
        ended=trouble(pod) or str(status["phase"]) if status.get("phase") in _ENDED else "",
        done=status.get("phase") == "Succeeded",
        leaving=bool(metadata.get("deletionTimestamp")),
        made_at=unix(metadata.get("creationTimestamp")) or 0.0,
        scheduled=(find(status["conditions"], "PodScheduled") or {}).get("status") == "True",
        trouble=trouble(pod),
        addr=str(status.get("podIP") or ""),
        held=labels.get(names.ADOPTION) == names.HELD,
        moving=names.ADOPTION in labels,
        node=pod["node"],
    )


def trouble(pod: Document) -> str:
    """What the kubelet, or the scheduler, says of one that doesn't come up; "" = nothing."""
    status = pod["status"]
    for state in status["states"]:
        said = state.get("waiting") or state.get("terminated") or {}
        if said.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return ": ".join(str(said[key]) for key in ("reason", "message") if said.get(key))
    unscheduled = find(status["conditions"], "PodScheduled") or {}
    if unscheduled.get("status") == "False":
        return f"no node: {unscheduled.get('message') or unscheduled.get('reason')}"
    return ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))


def evicts(pod: Document) -> str:
    """Why the scheduler would end other pods for it, "" = it would not; `pod`: as the API server would have it."""
    spec = pod.get("spec") or {}
    if int(spec.get("priority") or 0) <= 0 or spec.get("preemptionPolicy") == "Never":
        return ""
    of = spec.get("priorityClassName")
    return f"WouldEvict: PriorityClass {of} lets idle pods evict others: name one with preemptionPolicy Never"


def requested(pod: Document) -> frozenset[str]:
    """The resources that its containers ask for, and its own place."""
    found = {PLACES}
    for container in pod["spec"].get("containers") or ():
        resources = container.get("resources") or {}
        found.update(resources.get("requests") or (), resources.get("limits") or ())
    return frozenset(found)


def lacking(said: str) -> frozenset[str]:
    """The resources that nodes have too little of, as the scheduler says; none where no pod's end could help."""
    if _HELPLESS.search(said):
        return frozenset()
    return frozenset([*_LACKING.findall(said), *([PLACES] if _TOO_MANY in said else ())])


def replica_set(deployment: Document, found: list[Document]) -> Document | None:
    """The one of the Deployment's present template; None while there is none."""
    metadata = deployment["metadata"]
    present = text_map(metadata.get("annotations")).get(names.TEMPLATE_REVISION, "")
    for one in found:
        theirs = one["metadata"]
        owned = any(
            owner.get("controller") and owner.get("uid") == metadata.get("uid")
            for owner in theirs.get("ownerReferences") or ()
        )
        if owned and text_map(theirs.get("annotations")).get(names.TEMPLATE_REVISION) == present:
            return one
    return None


def takes(replica_set: Document, more: int) -> bool:
    """Whether it lacks so many pods beside those that it has: then it deletes none for them."""
    status = replica_set.get("status") or {}
    return int((replica_set.get("spec") or {}).get("replicas", 1)) >= int(status.get("replicas") or 0) + more


def has_seen(obj: Document) -> bool:
    """Whether its controller knows of its present spec."""
    observed = int((obj.get("status") or {}).get("observedGeneration") or 0)
    return observed >= int(obj["metadata"].get("generation") or 0)


def has_room(replica_set: Document, pods: int) -> bool:
    """Whether its controller is known to have seen that there are to be so many: then it deletes none of them."""
    return has_seen(replica_set) and int((replica_set.get("spec") or {}).get("replicas", 1)) >= pods
