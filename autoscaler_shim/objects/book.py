"""The objects as applied: admission, generations, typed views. In memory; the caller makes it durable.

An object is admitted as a whole or refused with every problem. Its generation grows when its spec changes and
only then; status belongs to the reconciler and is never taken from what a person applies. No I/O, no clock.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kserve_ext.api.kserve import inference_service, priority_class, selection, serving_runtime
from kserve_ext.api.kserve.inference_service import InferenceService
from kserve_ext.api.kserve.priority_class import PriorityClass
from kserve_ext.api.kserve.resources import KINDS, KindOf, kind_of, kind_remedy
from kserve_ext.api.kserve.serving_runtime import ServingRuntime
from kserve_ext.api.problems import Findings

Document = dict[str, Any]
#: of an object, what is not what a person wants of it; the rest is `spec` in most kinds
_NOT_BODY: Final = ("apiVersion", "kind", "metadata", "status")
_BY_KIND: Final = {kind.kind: kind for kind in KINDS}


class ObjectKey(NamedTuple):
    """`namespace` is "" for cluster-wide kinds."""

    kind: str
    namespace: str
    name: str

    @property
    def store_key(self) -> str:
        return f"objects/{self.kind}/{self.namespace or '-'}/{self.name}"

    def __str__(self) -> str:
        return f"{_BY_KIND[self.kind].plural}/{self.name}"


class Refused(Exception):
    """The object is not admitted; `findings` say why. `status` is the HTTP status of an API server."""

    def __init__(self, findings: Findings, status: int = 422) -> None:
        super().__init__("; ".join(str(p) for p in findings.problems))
        self.findings = findings
        self.status = status


class Applied(NamedTuple):
    key: ObjectKey
    verb: str  # created | configured | unchanged
    document: Document
    warnings: tuple[str, ...]


@dataclass(slots=True)
class Book:
    """All objects. `typed` has a view for each one that is in `documents`."""

    documents: dict[ObjectKey, Document] = field(default_factory=dict)
    services: dict[ObjectKey, InferenceService] = field(default_factory=dict)
    runtimes: dict[ObjectKey, ServingRuntime] = field(default_factory=dict)
    priorities: dict[ObjectKey, PriorityClass] = field(default_factory=dict)
    warnings: dict[ObjectKey, tuple[str, ...]] = field(default_factory=dict)
    version: int = 0

    def apply(self, document: object, now: str, uid: str) -> Applied:
        """Creates or changes one object."""
        findings = Findings()
        if not isinstance(document, dict):
            findings.problem("(document)", "is not an object", "write apiVersion, kind, metadata and spec")
            raise Refused(findings, 400)
        kind = kind_of(str(document.get("kind") or ""))
        if kind is None or kind.kind != document.get("kind"):
            word = str(document.get("kind") or "")
            findings.problem(
                "kind", "unknown kind" if word else "is missing", kind_remedy(word), word or None
            )
            raise Refused(findings, 404)
        typed = self._read(kind, document, findings)
        key = ObjectKey(kind.kind, typed.meta.namespace, typed.meta.name)
        before = self.documents.get(key)
        after = self._stamped(key, document, before, now, uid)
        warnings = tuple(findings.warnings)
        if before is not None and _without_version(before) == _without_version(after):
            return Applied(key, "unchanged", before, warnings)
        self.version += 1
        after["metadata"]["resourceVersion"] = str(self.version)
        self._admit(key, after, warnings)
        return Applied(key, "configured" if before is not None else "created", after, warnings)

    def restore(self, document: Document) -> ObjectKey:
        """From the store, as it was written; one that this release can't read is refused."""
        findings = Findings()
        kind = _BY_KIND[document["kind"]]
        typed = self._read(kind, document, findings)
        key = ObjectKey(kind.kind, typed.meta.namespace, typed.meta.name)
        self.version = max(self.version, int(document["metadata"].get("resourceVersion") or 0))
        self._admit(key, document, tuple(findings.warnings))
        return key

    def set_status(self, key: ObjectKey, status: Document) -> Document | None:
        """The changed document, None if the status is the same or the object is gone."""
        document = self.documents.get(key)
        if document is None or document.get("status") == status:
            return None
        self.version += 1
        metadata = {**document["metadata"], "resourceVersion": str(self.version)}
        changed = {**document, "metadata": metadata, "status": status}
        self.documents[key] = changed
        return changed

    def delete(self, key: ObjectKey) -> Document | None:
        self.services.pop(key, None)
        self.runtimes.pop(key, None)
        self.priorities.pop(key, None)
        self.warnings.pop(key, None)
        return self.documents.pop(key, None)

    def list(self, kind: str, namespace: str = "") -> Iterator[Document]:
        """In order of namespace and name; "" = all namespaces."""
        for key in sorted(k for k in self.documents if k.kind == kind):
            if not namespace or key.namespace in ("", namespace):
                yield self.documents[key]

    def _read(
        self, kind: KindOf, document: Document, findings: Findings
    ) -> InferenceService | ServingRuntime | PriorityClass:
        if kind.kind == "PriorityClass":
            priority = priority_class.read(document, findings)
            if priority is not None:
                before = self.priorities.get(ObjectKey(kind.kind, "", priority.meta.name))
                priority_class.check_change(priority, before, self.priorities.values(), findings)
            if priority is not None and findings:
                return priority
            raise Refused(findings)
        if kind.kind == "InferenceService":
            service = inference_service.read(document, findings)
            if service is not None and findings:
                return service
            raise Refused(findings)
        runtime = serving_runtime.read(document, findings)
        if runtime is None or not findings:
            raise Refused(findings)
        clash = selection.conflict(runtime, self.runtimes.values())
        if clash:
            remedy = "give it another priority, or autoSelect: false"
            findings.problem("spec.supportedModelFormats", f"cannot be told apart: {clash}", remedy)
            raise Refused(findings, 409)
        return runtime

    def _admit(self, key: ObjectKey, document: Document, warnings: tuple[str, ...]) -> None:
        """Stores the document with a typed view of what was stored (generation and time included)."""
        findings = Findings()
        if key.kind == "InferenceService":
            service = inference_service.read(document, findings)
            assert service is not None, findings.problems
            self.services[key] = service
        elif key.kind == "PriorityClass":
            priority = priority_class.read(document, findings)
            assert priority is not None, findings.problems
            self.priorities[key] = priority
        else:
            runtime = serving_runtime.read(document, findings)
            assert runtime is not None, findings.problems
            self.runtimes[key] = runtime
        self.documents[key] = document
        self.warnings[key] = warnings

    def _stamped(
        self, key: ObjectKey, given: Document, before: Document | None, now: str, uid: str
    ) -> Document:
        old = before["metadata"] if before else {}
        metadata: Document = {"name": key.name}
        if key.namespace:
            metadata["namespace"] = key.namespace
        for name in ("labels", "annotations"):
            words = dict(given["metadata"].get(name) or {})
            words.pop("kubectl.kubernetes.io/last-applied-configuration", None)
            if words:
                metadata[name] = words
        body = copy.deepcopy({name: value for name, value in given.items() if name not in _NOT_BODY})
        generation = int(old.get("generation", 0))
        metadata["generation"] = generation if before and _body(before) == body else generation + 1
        metadata["creationTimestamp"] = old.get("creationTimestamp") or now
        metadata["uid"] = old.get("uid") or uid
        document: Document = {
            "apiVersion": given["apiVersion"],
            "kind": key.kind,
            "metadata": metadata,
            **body,
        }
        if before and "status" in before:
            document["status"] = before["status"]
        return document


def _body(document: Document) -> Document:
    return {name: value for name, value in document.items() if name not in _NOT_BODY}


def _without_version(document: Document) -> Document:
    metadata = {k: v for k, v in document["metadata"].items() if k != "resourceVersion"}
    return {**document, "metadata": metadata}
