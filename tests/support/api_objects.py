"""The objects of the fake API server: versions, generations, selectors, finalizers, history. No I/O.

Behaves as the real one does where our code depends on it: one counter of versions for everything, a write that
changes nothing keeps its version, status changes only through its subresource, a generation counts changes of the
spec, an object with finalizers is first marked and later gone.
"""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from kserve_ext.kube.kinds import Kind

Obj = dict[str, Any]
Key = tuple[str, str]
EPOCH = "2026-01-01T00:00:00Z"


class Change(NamedTuple):
    version: int
    old: Obj | None
    new: Obj | None  # with the new version in a deletion, too: then it is `old` with that version
    deleted: bool = False


class Refused(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message


class Objects:
    """Everything that the API server has."""

    def __init__(self, on_change: Callable[[Kind, Change], None]) -> None:
        self.on_change = on_change
        self.version = 100
        self.compacted = 0
        self._kinds: dict[tuple[str, str], dict[Key, Obj]] = {}
        self._changes: dict[tuple[str, str], list[Change]] = {}

    def of(self, kind: Kind) -> dict[Key, Obj]:
        return self._kinds.setdefault((kind.group, kind.plural), {})

    def changes(self, kind: Kind, after: int) -> list[Change]:
        if after < self.compacted:
            raise Refused(410, "Expired", f"too old resource version: {after} ({self.compacted})")
        return [c for c in self._changes.get((kind.group, kind.plural), []) if c.version > after]

    def compact(self) -> None:
        """Forgets all history up to now."""
        self.compacted = self.version
        self._changes.clear()

    def get(self, kind: Kind, key: Key) -> Obj:
        found = self.of(kind).get(key)
        if found is None:
            raise Refused(404, "NotFound", f'{kind} "{key[1]}" not found')
        return found

    def create(self, kind: Kind, namespace: str, obj: Obj) -> Obj:
        obj = copy.deepcopy(obj)
        metadata = obj.setdefault("metadata", {})
        if "name" not in metadata and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        key = (namespace, metadata["name"])
        if key in self.of(kind):
            raise Refused(409, "AlreadyExists", f'{kind} "{key[1]}" already exists')
        if metadata.get("resourceVersion"):
            raise Refused(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        if "spec" in obj:
            obj.pop("status", None)
        return self.put(kind, namespace, obj)

    def replace(self, kind: Kind, key: Key, obj: Obj, subresource: str = "") -> Obj:
        old = self.get(kind, key)
        obj = copy.deepcopy(obj)
        metadata = obj.setdefault("metadata", {})
        version = metadata.get("resourceVersion")
        if not version and is_custom(kind):
            raise Refused(422, "Invalid", "metadata.resourceVersion: must be specified for an update")
        if version and version != old["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", f'Operation cannot be fulfilled on {kind} "{key[1]}": changed')
        if metadata.get("uid") and metadata["uid"] != old["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {metadata['uid']}")
        if subresource == "status":
            new = {**copy.deepcopy(old), "status": obj.get("status", {})}
        elif subresource == "scale":
            new = copy.deepcopy(old)
            new["spec"]["replicas"] = obj["spec"]["replicas"]
        else:
            new = obj
            if "spec" in old:
                new.pop("status", None)
                if "status" in old:
                    new["status"] = copy.deepcopy(old["status"])
        return self._write(kind, key, old, new)

    def delete(self, kind: Kind, key: Key, uid: str = "") -> Obj:
        old = self.get(kind, key)
        if uid and uid != old["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"Precondition failed: UID in precondition: {uid}")
        if old["metadata"].get("finalizers"):
            marked = copy.deepcopy(old)
            marked["metadata"].setdefault("deletionTimestamp", EPOCH)
            return self._write(kind, key, old, marked)
        return self._remove(kind, key, old)

    def put(self, kind: Kind, namespace: str, obj: Obj) -> Obj:
        """The test's own hand: creates or replaces everything, status included, without any condition."""
        key = (namespace, obj["metadata"]["name"])
        return self._write(kind, key, self.of(kind).get(key), copy.deepcopy(obj))

    # --- inside

    def _write(self, kind: Kind, key: Key, old: Obj | None, new: Obj) -> Obj:
        metadata = new.setdefault("metadata", {})
        was = old["metadata"] if old else {}
        metadata.update({"name": key[1], "uid": was.get("uid") or str(uuid.uuid4())})
        metadata.update({"namespace": key[0]} if key[0] else {})
        metadata["creationTimestamp"] = was.get("creationTimestamp", EPOCH)
        if "deletionTimestamp" in was:
            metadata["deletionTimestamp"] = was["deletionTimestamp"]
        new.update(
            {"apiVersion": kind.api_version, "kind": kind.kind or new.get("kind") or (old or {}).get("kind")}
        )
        if "spec" in new:
            changed = old is None or old.get("spec") != new["spec"]
            metadata["generation"] = was.get("generation", 0) + (1 if changed else 0)
        if old is not None:
            metadata["resourceVersion"] = was["resourceVersion"]
            if new == old:
                return old
        self.version += 1
        metadata["resourceVersion"] = str(self.version)
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            return self._remove(kind, key, new)
        self.of(kind)[key] = new
        self._note(kind, Change(self.version, old, new))
        return new

    def _remove(self, kind: Kind, key: Key, old: Obj) -> Obj:
        del self.of(kind)[key]
        self.version += 1
        last = copy.deepcopy(old)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._note(kind, Change(self.version, old, last, deleted=True))
        return last

    def _note(self, kind: Kind, change: Change) -> None:
        self._changes.setdefault((kind.group, kind.plural), []).append(change)
        self.on_change(kind, change)


class Selector:
    """What a list or a watch asks for: namespace, labels, fields."""

    def __init__(self, namespace: str, labels: str, fields: str) -> None:
        self.namespace = namespace
        self.labels = [part.strip() for part in re.split(r",(?![^(]*\))", labels) if part.strip()]
        self.fields = [part.strip() for part in fields.split(",") if part.strip()]

    def takes(self, obj: Obj | None) -> bool:
        if obj is None:
            return False
        metadata = obj["metadata"]
        if self.namespace and metadata.get("namespace") != self.namespace:
            return False
        labels = metadata.get("labels") or {}
        return all(_label(part, labels) for part in self.labels) and all(_field(p, obj) for p in self.fields)


def is_custom(kind: Kind) -> bool:
    """Whether a CRD would define it."""
    return "." in kind.group and not kind.group.endswith(".k8s.io")


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_patch(target: Obj, operations: list[Obj]) -> Obj:
    """RFC 6902: test, add, replace and remove."""
    result: Obj = copy.deepcopy(target)
    for operation in operations:
        *path, last = (p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:])
        place: Any = result
        for step in path:
            place = place[int(step)] if isinstance(place, list) else place[step]
        index: Any = len(place) if last == "-" else int(last) if isinstance(place, list) else last
        match operation["op"]:
            case "test" if (place.get(index) if isinstance(place, dict) else place[index]) != operation[
                "value"
            ]:
                raise Refused(422, "Invalid", f"testing path {operation['path']} failed")
            case "add" if isinstance(place, list):
                place.insert(index, operation["value"])
            case "add" | "replace":
                place[index] = operation["value"]
            case "remove":
                del place[index]
    return result


def _label(part: str, labels: dict[str, str]) -> bool:
    if match := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", part):
        name, how, values = match.groups()
        return (labels.get(name) in [v.strip() for v in values.split(",")]) is (how == "in")
    if "!=" in part:
        name, value = part.split("!=")
        return labels.get(name) != value
    if "=" in part:
        name, value = re.split("==?", part)
        return labels.get(name) == value
    return part[1:] not in labels if part.startswith("!") else part in labels


def _field(part: str, obj: Obj) -> bool:
    differs = "!=" in part
    path, wanted = re.split("!=|==?", part)
    value: Any = obj
    for name in path.split("."):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return (str(value) != wanted) is differs
