"""Conditions in the status of Knative's objects: a sorted list of which each has a type, a status and a time.

Matches knative.dev/pkg/apis (condition_set.go): lastTransitionTime moves whenever a condition says something else,
and stays while it says the same. Ready sums up those that it depends on. Wall time is seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

TRUE: Final = "True"
FALSE: Final = "False"
UNKNOWN: Final = "Unknown"
READY: Final = "Ready"

Document = dict[str, Any]


class Condition(NamedTuple):
    type: str
    status: str = UNKNOWN
    reason: str = ""
    message: str = ""
    #: "" counts for Ready; Warning and Info don't
    severity: str = ""


def find(conditions: object, type_: str) -> Document | None:
    """None, too, where the status is not what it should be."""
    if not isinstance(conditions, list):
        return None
    return next((c for c in conditions if isinstance(c, dict) and c.get("type") == type_), None)


def status_of(conditions: object, type_: str) -> str:
    found = find(conditions, type_)
    return UNKNOWN if found is None else str(found.get("status") or UNKNOWN)


def since(conditions: object, type_: str) -> float | None:
    """When it began to say what it says; None if there is no such condition, or no such time."""
    found = find(conditions, type_)
    return None if found is None else unix(found.get("lastTransitionTime"))


def dated(conditions: Sequence[Condition], before: object, now: float) -> list[Document]:
    """The list to write: what changed has changed now."""
    written = []
    for condition in sorted(conditions):
        entry = {key: value for key, value in condition._asdict().items() if value}
        last = find(before, condition.type)
        if last is not None and {k: v for k, v in last.items() if k != "lastTransitionTime"} == entry:
            entry = dict(last)
        else:
            entry["lastTransitionTime"] = rfc3339(now)
        written.append(entry)
    return written


def ready(leading: Condition, others: Sequence[Condition]) -> Condition:
    """Ready, by the condition that was marked last; of the others, all have to be true besides."""
    for condition in (leading, *(c for c in others if c.status == FALSE), *others):
        if condition.status != TRUE:
            return condition._replace(type=READY)
    return Condition(READY, TRUE)


def unix(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def rfc3339(now: float) -> str:
    """To the second, as Kubernetes writes it."""
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def text_map(value: Any) -> Mapping[str, str]:
    """Labels or annotations, as far as they are what they should be."""
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
