"""A revision's pods, as far as scaling asks: how many there are in which state, and which can be scraped.

Counts as pkg/resources/pods.go does. A pod says in a label which revision it is of.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kserve_ext.api import quantities
from kserve_ext.api.knative.conditions import Document, find, text_map, unix
from kserve_ext.api.knative.pa import REVISION_LABEL
from kserve_ext.core.knative.pod_autoscaler import Pods
from kserve_ext.core.knative.sampling import Pod

GPU: Final = "nvidia.com/gpu"


class Unplaced(NamedTuple):
    """A pod that no node has room for."""

    words: str  # the scheduler's
    gpus: int = 0  # that it asks for


class PodFact(NamedTuple):
    revision: str  # namespace/name
    phase: str
    ready: bool
    terminating: bool
    address: str
    started_at: float
    unplaced: Unplaced | None = None  # None: a node has room for it, or nobody has looked yet


def fact(pod: Document) -> PodFact | None:
    """None for a pod that is of no revision."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    revision = text_map(metadata.get("labels")).get(REVISION_LABEL)
    if not revision:
        return None
    ready = find(status.get("conditions"), "Ready")
    scheduled = find(status.get("conditions"), "PodScheduled") or {}
    no_node = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return PodFact(
        f"{metadata['namespace']}/{revision}",
        str(status.get("phase") or ""),
        ready is not None and ready.get("status") == "True",
        bool(metadata.get("deletionTimestamp")),
        str(status.get("podIP") or ""),
        unix(status.get("startTime")) or 0.0,
        Unplaced(str(scheduled.get("message") or "Unschedulable"), int(pod.get("gpus") or 0))
        if no_node
        else None,
    )


def slim(pod: Document) -> Document:
    """The part of a pod that fact() reads, to be kept in memory."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    kept = ("name", "namespace", "uid", "resourceVersion", "labels", "deletionTimestamp")
    waits = (find(status.get("conditions"), "PodScheduled") or {}).get("status") == "False"
    return {
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        **({"gpus": gpus(pod)} if waits else {}),
        "status": {
            "phase": status.get("phase"),
            "podIP": status.get("podIP"),
            "startTime": status.get("startTime"),
            "conditions": [
                c
                for c in status.get("conditions") or ()
                if c.get("type") == "Ready" or (c.get("type"), c.get("status")) == ("PodScheduled", "False")
            ],
        },
    }


def gpus(pod: Document) -> int:
    """That its containers ask for; a device's request and limit are the same."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    limits = [(container.get("resources") or {}).get("limits") or {} for container in containers]
    return sum(quantities.whole(of[GPU]) for of in limits if GPU in of)


def count(pods: Iterable[PodFact]) -> Pods:
    ready = not_ready = pending = terminating = 0
    for pod in pods:
        if pod.phase == "Pending":
            pending += 1
            not_ready += 1
        elif pod.phase == "Running":
            if pod.terminating:
                terminating += 1
                not_ready += 1
            elif pod.ready:
                ready += 1
            else:
                not_ready += 1
    return Pods(ready, not_ready, pending, terminating)


def scrapable(pods: Iterable[PodFact]) -> list[Pod]:
    return [
        Pod(pod.address, pod.started_at)
        for pod in pods
        if pod.phase == "Running" and pod.ready and not pod.terminating and pod.address
    ]
