"""Strategic merge of one Kubernetes object with a patch, and the patch that takes it back.

Pure. The same rules as the API server and kustomize follow for what our patches touch: maps are merged, the lists
below are merged by a key, every other list is replaced, null removes a field and `$patch: delete` an element. The
undo is itself a patch of this form: the API server carries it out, and whatever else has changed meanwhile stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Map = dict[str, Any]
DIRECTIVE: Final = "$patch"
#: Field -> what tells its elements apart, for a pod template.
KEYS: Final = {
    "containers": "name",
    "env": "name",
    "initContainers": "name",
    "topologySpreadConstraints": "topologyKey",
    "volumeMounts": "mountPath",
    "volumes": "name",
}


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Map:
    """A new object; a list that is left without elements goes, as it does in the API server."""
    merged = dict(base)
    for field, change in patch.items():
        if change is None:
            merged.pop(field, None)
        elif field in KEYS:
            elements = _merge_elements(base.get(field) or (), change, KEYS[field])
            if elements:
                merged[field] = elements
            else:
                merged.pop(field, None)
        elif isinstance(change, Mapping):
            below = base.get(field)
            merged[field] = merge(below if isinstance(below, Mapping) else {}, change)
        else:
            merged[field] = change
    return merged


def undo(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Map:
    """merge(merge(base, patch), undo(base, patch)) == base, for a patch that removes nothing."""
    back: Map = {}
    for field, change in patch.items():
        former = base.get(field)
        if field in KEYS:
            back[field] = _undo_elements(former or (), change, KEYS[field])
        elif isinstance(change, Mapping) and isinstance(former, Mapping):
            back[field] = undo(former, change)
        else:
            back[field] = former
    return back


def without(patch: Mapping[str, Any], field: str) -> Map:
    """The patch without a field, wherever it stands."""
    kept: Map = {}
    for name, change in patch.items():
        if name == field:
            continue
        if isinstance(change, Mapping):
            kept[name] = without(change, field)
        elif name in KEYS and change is not None:
            kept[name] = [without(element, field) for element in change]
        else:
            kept[name] = change
    return kept


def _merge_elements(base: Sequence[Map], changes: Sequence[Map], key: str) -> list[Map]:
    merged = {element[key]: element for element in base}
    for change in changes:
        name = change[key]
        if change.get(DIRECTIVE) == "delete":
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name, {}), change)
    return list(merged.values())


def _undo_elements(base: Sequence[Map], changes: Sequence[Map], key: str) -> list[Map]:
    former = {element[key]: element for element in base}
    back = []
    for change in changes:
        name = change[key]
        if name in former:
            back.append({**undo(former[name], change), key: name})
        else:
            back.append({key: name, DIRECTIVE: "delete"})
    return back
