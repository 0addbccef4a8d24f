"""What a slot is told of the revision that it serves; what makes its pod that revision's own, and nobody's again."""

from __future__ import annotations

from typing import Final

from kserve_ext.api.knative.conditions import Document, text_map
from kserve_ext.api.standby import fitting, names, pods
from kserve_ext.api.standby.fitting import Wish
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby.facts import Assignment, Timeouts

PYTHON: Final = "python"
_OF_METRICS: Final = ("SERVING_NAMESPACE", "SERVING_SERVICE", "SERVING_CONFIGURATION", "SERVING_REVISION")
_ADOPTION: Final = "/metadata/labels/" + names.ADOPTION.replace("/", "~1")
#: Labels that a standby pod keeps, whatever the template says.
_OURS: Final = (names.POOL_LABEL, names.PART_LABEL, names.COMPONENT_LABEL)


def assignment(wish: Wish, revision: RevisionKey, pod: str) -> Assignment:
    """`pod`: its name without the namespace. References to variables the slot puts in, as the kubelet would."""
    queue = fitting.literal(wish.queue)
    command = wish.user.get("command") or (PYTHON, "-m", wish.zygote)
    total_s = _number(queue, "REVISION_TIMEOUT_SECONDS", 300)
    return Assignment(
        revision=revision,
        instance=InstanceID(pod),
        argv=tuple(str(word) for word in (*command, *(wish.user.get("args") or ()))),
        env=tuple(
            (entry["name"], str(entry.get("value") or ""))
            for entry in wish.user.get("env") or ()
            if not entry.get("valueFrom")
        ),
        port=int(_number(queue, "USER_PORT", 8080)),
        http2=queue.get("QUEUE_SERVING_PORT") == str(names.HTTP2_PORT),
        concurrency=int(_number(queue, "CONTAINER_CONCURRENCY", 0)),
        timeouts=Timeouts(
            total_s,
            _number(queue, "REVISION_RESPONSE_START_TIMEOUT_SECONDS", 0),
            _number(queue, "REVISION_IDLE_TIMEOUT_SECONDS", 0),
        ),
        probe=queue.get("SERVING_READINESS_PROBE", ""),
        labels=tuple((name, queue[name]) for name in _OF_METRICS if name in queue),
        model=fitting.models(wish),
        drain_s=total_s,
        engine=wish.engine,
    )


def labelled(wish: Wish, template_hash: str, uid: str, version: str, hold: bool = False) -> Document:
    """A merge patch that makes the pod the ReplicaSet's of this hash, or keeps it for that one (`hold`).

    Refused where the pod is another, or newer.
    """
    metadata = wish.template.get("metadata") or {}
    labels = {k: v for k, v in text_map(metadata.get("labels")).items() if k not in _OURS}
    if hold:
        labels[names.ADOPTION] = names.HELD
    annotations = text_map(metadata.get("annotations"))
    return {
        "metadata": {
            "uid": uid,
            "resourceVersion": version,
            "labels": {**labels, names.TEMPLATE_HASH: template_hash},
            "annotations": annotations,
        }
    }


def guarded(uid: str) -> list[Document]:
    """A JSON patch: its ReplicaSet may have it. Refused where it isn't held, as somebody has gone on with it."""
    return [
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": _ADOPTION, "value": names.HELD},
        {"op": "replace", "path": _ADOPTION, "value": names.GUARDED},
    ]


def settled(uid: str) -> list[Document]:
    """A JSON patch: it is a pod like any other. Refused where it isn't guarded."""
    return [
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": _ADOPTION, "value": names.GUARDED},
        {"op": "remove", "path": _ADOPTION},
    ]


def stolen() -> Document:
    """A merge patch that nobody may apply while pods can be held: for a look whether they can."""
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "nobody",
        "uid": "nobody",
        "controller": True,
    }
    return {"metadata": {"labels": {names.ADOPTION: names.HELD}, "ownerReferences": [owner]}}


def goes_first(uid: str) -> Document:
    """A merge patch that makes it the first of its revision to go."""
    return {"metadata": {"uid": uid, "annotations": {names.DELETION_COST: names.GOES_FIRST}}}


def held_back(pod: Document) -> Document:
    """A merge patch that takes it from its ReplicaSet, which makes no other and can't have it again.

    It is to be released once there is no place for it any more. Refused where the pod is another, or newer.
    """
    metadata = pod["metadata"]
    return {
        "metadata": {
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "labels": {names.ADOPTION: names.HELD},
            "ownerReferences": None,
        }
    }


def released(pod: Document, newer: bool = False) -> Document:
    """A merge patch that makes it nobody's again: all that `labelled` has given it, and its owner.

    Refused where the pod is another, or newer, unless that was our own doing (`newer`).
    """
    metadata = pod["metadata"]
    labels = [key for key in text_map(metadata.get("labels")) if key not in _OURS]
    annotations = [
        key for key in text_map(metadata.get("annotations")) if not key.startswith(pods.READ_BY_NETWORKS)
    ]
    return {
        "metadata": {
            "uid": metadata["uid"],
            **({} if newer else {"resourceVersion": metadata["resourceVersion"]}),
            "labels": dict.fromkeys([*labels, names.ADOPTION]),
            "annotations": dict.fromkeys(annotations),
            "ownerReferences": None,
        }
    }


def _number(env: dict[str, str], name: str, default: float) -> float:
    text = env.get(name, "")
    return float(text) if text.replace(".", "", 1).isdigit() else default
