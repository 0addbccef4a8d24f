"""Whose each slot of a revision's pods is by position, among activators that lend slots to each other.

The pods of an activator are those that Knative's own would give it (core/knative/assignment.py). Where there are more
activators than pods, Knative's all send a pod as much as it can take; ours split it. So the slots of ours together
are never more than Knative's, with activators of Knative's own beside them too, and no two of ours have the same one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from kserve_ext.core.ids import FunctionID, InstanceID
from kserve_ext.core.knative.assignment import Share, assign

Slots = Mapping[InstanceID, int]


def own_slots(
    pods: Sequence[InstanceID],
    concurrency: int,
    activators: Sequence[FunctionID],
    ours: Collection[FunctionID],
) -> dict[FunctionID, dict[InstanceID, int]]:
    """`pods` and `activators` (all that serve the revision) sorted; `ours`: who can be reached, and oneself."""
    owners: dict[InstanceID, list[FunctionID]] = {}
    own: dict[FunctionID, dict[InstanceID, int]] = {activator: {} for activator in ours}
    for place, activator in enumerate(activators):
        if activator in own:
            for pod in assign(pods, Share(place, len(activators))):
                owners.setdefault(pod, []).append(activator)
    for pod, sharing in owners.items():
        each, rest = divmod(concurrency, len(sharing))
        for k, activator in enumerate(sharing):
            if each or k < rest:
                own[activator][pod] = each + (k < rest)
    return own
