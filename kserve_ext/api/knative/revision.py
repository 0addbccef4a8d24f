"""What an activator needs to know of a Revision serving.knative.dev/v1.

Objects come from the API server, which has checked them; what a revision of another release lacks gets the default
that Knative's webhook would have written. In Knative: pkg/apis/serving/v1/revision_helpers.go, and the rule of
getOrCreateRevisionWatcher in pkg/activator/net/revision_backends.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kserve_ext.api.annotations import PREFIX
from kserve_ext.api.knative.conditions import TRUE, find, status_of
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.groups import Joined
from kserve_ext.core.knative.timeouts import Timeouts

REVISION_LABEL: Final = "serving.knative.dev/revision"
_SERVICE: Final = "serving.knative.dev/service"
_CONFIGURATION: Final = "serving.knative.dev/configuration"
_ROUTING: Final = "serving.knative.dev/routingState"
_ROLE: Final = PREFIX + "role"
_GROUP: Final = PREFIX + "pd-group"
_TIMEOUT_S: Final = 300.0
_ALONE: Final = Joined()

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Activated:
    """One revision, as it is served through an activator."""

    key: RevisionKey
    namespace: str
    name: str
    uid: str
    concurrency: int  # 0 = no limit
    timeouts: Timeouts
    http2: bool  # its pods take HTTP/2 (h2c), on the port and Service port of that name
    early: bool  # a pod may serve as soon as its queue-proxy answers, before Kubernetes calls it ready
    service: str = ""  # the Knative Service and Configuration that made it
    configuration: str = ""
    joined: Joined = _ALONE

    @property
    def port_name(self) -> str:
        return "http2" if self.http2 else "http"


def read(revision: Document) -> Activated:
    metadata, spec = revision["metadata"], revision.get("spec") or {}
    labels = metadata.get("labels") or {}
    containers = spec.get("containers") or ()
    serving = _serving(containers)
    ports: Sequence[Document] = serving.get("ports") or ()
    return Activated(
        RevisionKey(f"{metadata['namespace']}/{metadata['name']}"),
        metadata["namespace"],
        metadata["name"],
        metadata.get("uid", ""),
        int(spec.get("containerConcurrency") or 0),
        Timeouts(
            float(spec.get("timeoutSeconds") or _TIMEOUT_S),
            float(spec.get("responseStartTimeoutSeconds") or 0),
            float(spec.get("idleTimeoutSeconds") or 0),
        ),
        len(ports) > 0 and ports[0].get("name") == "h2c",
        not (serving.get("readinessProbe") or {}).get("exec")
        and not any(container.get("startupProbe") for container in containers),
        labels.get(_SERVICE, ""),
        labels.get(_CONFIGURATION, ""),
        _joined(revision, labels),
    )


def _joined(revision: Document, labels: Document) -> Joined:
    metadata = revision["metadata"]
    notes = metadata.get("annotations") or {}
    role = notes.get(_ROLE)
    if role not in ("prefill", "decode"):
        return _ALONE
    return Joined(
        role,
        notes.get(_GROUP, ""),
        labels.get(_ROUTING) != "reserve",
        status_of((revision.get("status") or {}).get("conditions"), "Ready") == TRUE,
        metadata.get("creationTimestamp", ""),
    )


def kept(revision: Document) -> dict[str, Any]:
    """The part of the object that `read` looks at, for a cache in memory."""
    metadata, spec = revision["metadata"], revision.get("spec") or {}
    containers = [
        {
            field: container[field]
            for field in ("ports", "readinessProbe", "startupProbe")
            if field in container
        }
        for container in spec.get("containers") or ()
    ]
    notes = metadata.get("annotations") or {}
    joined = {name: notes[name] for name in (_ROLE, _GROUP) if name in notes}
    ready = find((revision.get("status") or {}).get("conditions"), "Ready") if joined else None
    fields = ("containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds")
    return {
        "metadata": {
            field: metadata[field]
            for field in ("namespace", "name", "uid", "resourceVersion", "labels")
            if field in metadata
        }
        | (
            {"annotations": joined, "creationTimestamp": metadata.get("creationTimestamp", "")}
            if joined
            else {}
        ),
        "spec": {"containers": containers, **{field: spec[field] for field in fields if field in spec}},
        **({"status": {"conditions": [ready]}} if ready else {}),
    }


def _serving(containers: Sequence[Document]) -> Document:
    """The container that requests go to: the one with a port where there are several."""
    if len(containers) == 1:
        return containers[0]
    found: Document = next((container for container in containers if container.get("ports")), {})
    return found
