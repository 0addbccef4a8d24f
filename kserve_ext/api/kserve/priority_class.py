"""PriorityClass scheduling.k8s.io/v1: how important a service is when the cluster is full, and whether it preempts.

Checked as the API server does: the value is at most a thousand million and, like the policy, never changes; names
that begin with system- are Kubernetes' own two, which are always there; at most one is the default of those that
name none. A service of which the class is gone keeps the revision that it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kserve_ext.api.kserve import schema
from kserve_ext.api.kserve.resources import Meta, metadata
from kserve_ext.api.kserve.schema import Object
from kserve_ext.api.problems import Findings, did_you_mean

Document = dict[str, Any]
MOST: Final = 1_000_000_000
PREEMPTS: Final = "PreemptLowerPriority"
NEVER: Final = "Never"
_SYSTEM: Final = "system-"

DOCUMENT: Final = Object(
    {
        "apiVersion": schema.one_of("scheduling.k8s.io/v1"),
        "kind": schema.text,
        "metadata": schema.anything,
        "value": schema.integer(-(2**31), MOST),
        "globalDefault": schema.boolean,
        "preemptionPolicy": schema.one_of(PREEMPTS, NEVER),
        "description": schema.text,
    },
    required=("apiVersion", "metadata", "value"),
)


@dataclass(frozen=True, slots=True)
class PriorityClass:
    meta: Meta
    value: int
    preempts: bool = True
    default: bool = False

    @property
    def policy(self) -> str:
        return PREEMPTS if self.preempts else NEVER


#: what Kubernetes has from the start
SYSTEM: Final = {
    name: PriorityClass(Meta(name, "", {}, {}), value)
    for name, value in (("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000))
}
NONE: Final = PriorityClass(Meta("", "", {}, {}), 0)


def read(document: Document, findings: Findings) -> PriorityClass | None:
    """The typed object, or None when there are problems."""
    DOCUMENT(document, "", findings)
    meta = metadata(document, False, findings)
    if meta.name.startswith(_SYSTEM):
        findings.problem(
            "metadata.name",
            f"names that begin with {_SYSTEM} are Kubernetes' own",
            "choose another",
            meta.name,
        )
    if not findings:
        return None
    policy = document.get("preemptionPolicy") or PREEMPTS
    return PriorityClass(meta, document["value"], policy == PREEMPTS, bool(document.get("globalDefault")))


def check_change(
    new: PriorityClass, before: PriorityClass | None, others: Iterable[PriorityClass], findings: Findings
) -> None:
    """What depends on what there is already."""
    remedy = "delete it and create it anew, or create another class"
    if before is not None and new.value != before.value:
        findings.problem("value", f"can't be changed from {before.value}", remedy, new.value)
    if before is not None and new.preempts != before.preempts:
        findings.problem("preemptionPolicy", f"can't be changed from {before.policy}", remedy, new.policy)
    default = next((c for c in others if c.default and c.meta.name != new.meta.name), None)
    if new.default and default is not None:
        findings.problem(
            "globalDefault", f"{default.meta.name} is the default already", "leave one of them", True
        )


def of_service(
    name: str, field: str, classes: Mapping[str, PriorityClass], findings: Findings
) -> PriorityClass:
    """The class that a service names, or the default."""
    if not name:
        return next((c for c in classes.values() if c.default), NONE)
    known = {**classes, **SYSTEM}
    found = known.get(name)
    if found is None:
        findings.problem(field, "there is no such PriorityClass", did_you_mean(name, sorted(known)), name)
    return found or NONE
