"""How far the roll-out of a Deployment or DaemonSet is, and what its pods wait for.

Pure; looks at the same fields in the same order as `kubectl rollout status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Progress(NamedTuple):
    done: bool
    failed: bool  # Kubernetes has given up waiting; the former pods still run
    text: str


def progress(deployment: Mapping[str, Any]) -> Progress:
    """Of a Deployment, or of a DaemonSet, whose kind is then said."""
    status = deployment.get("status") or {}
    kind = deployment.get("kind", "Deployment")
    if int(status.get("observedGeneration", 0)) < int(deployment["metadata"].get("generation", 0)):
        return Progress(False, False, f"waiting for the {kind} controller")
    if kind == "DaemonSet":
        return _on_nodes(status)
    for condition in status.get("conditions") or ():
        if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            return Progress(False, True, str(condition.get("message", "")))
    wanted = int(deployment["spec"].get("replicas", 1))
    new, total, available = (
        int(status.get(field, 0)) for field in ("updatedReplicas", "replicas", "availableReplicas")
    )
    if new < wanted:
        return Progress(False, False, f"{new} of {wanted} new pods exist")
    if total > new:
        return Progress(False, False, f"former pods left: {total - new}")
    if available < new:
        return Progress(False, False, f"{available} of {new} pods are available")
    return Progress(True, False, f"{available} of {wanted} pods are available")


def _on_nodes(status: Mapping[str, Any]) -> Progress:
    wanted, new, available = (
        int(status.get(field, 0))
        for field in ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")
    )
    if new < wanted:
        return Progress(False, False, f"{new} of {wanted} new pods exist")
    return Progress(available >= wanted, False, f"{available} of {wanted} pods are available")


def complaints(pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why pods do not become ready, one line for each container that says so."""
    found = []
    for pod in pods:
        name = pod["metadata"]["name"]
        status = pod.get("status") or {}
        for condition in status.get("conditions") or ():
            if condition.get("reason") == "Unschedulable":
                found.append(f"{name} has no node: {condition.get('message', '')}")
        for container in status.get("containerStatuses") or ():
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                found.append(f"{name}: {waiting['reason']} {waiting.get('message', '')}".rstrip())
    return found
