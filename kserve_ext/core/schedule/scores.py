"""How good a node is for an instance: what it saves, and what it leaves to others. Higher is better.

In order of weight: the model is there already (a load from elsewhere takes seconds to minutes), which counts for more
than all else together (ranking.py relies on it); it is near the partner it exchanges KV with (through shared memory
on one host, over one switch on one rail, within a zone); a slot is ready (a fork instead of the imports). The room
that is left decides between nodes that are equal otherwise: where GPUs are needed they are *packed*, because a GPU
node that is partly used costs large instances nothing more, and an empty one that is opened costs them a place;
everything else is *spread*, and kept off GPU nodes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from kserve_ext.core.facts import NodeStatus, Resources, Revision
from kserve_ext.core.ids import NodeID
from kserve_ext.core.schedule.filters import Candidate

ZONE_LABEL: Final = "topology.kubernetes.io/zone"
#: of ours: the rail-optimised switch (or RDMA fabric) that the node's devices are on
RAIL_LABEL: Final = "kserve-galaxy.io/rail"

MODEL_CACHED: Final = 5.5
SAME_HOST: Final = 2.0
SAME_RAIL: Final = 1.5
SAME_ZONE: Final = 1.25
SLOT_READY: Final = 1.0
#: against a node with GPUs, for what needs none; as much as room can make up for
KEEPS_GPUS_FREE: Final = 1.0


class Near(NamedTuple):
    """Where the partners of an instance are: their hosts, and the rails and zones of those that are known here."""

    nodes: frozenset[NodeID] = frozenset()
    rails: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()


NOWHERE: Final = Near()


def near(nodes: Collection[NodeID], statuses: Collection[NodeStatus]) -> Near:
    """`statuses`: of those of `nodes` that are known."""
    labels = [dict(status.labels) for status in statuses]
    rails = {of[RAIL_LABEL] for of in labels if RAIL_LABEL in of}
    zones = {of[ZONE_LABEL] for of in labels if ZONE_LABEL in of}
    return Near(frozenset(nodes), frozenset(rails), frozenset(zones))


def score(revision: Revision, candidate: Candidate, partners: Near = NOWHERE) -> float:
    """Of a node that fits. Room counts for less than 1."""
    status = candidate.status
    total = 0.0
    model = revision.model.uri
    if model and model in status.models:
        total += MODEL_CACHED
    if partners.nodes:
        total += nearness(status, partners)
    zygote = revision.command.zygote
    if zygote:
        for module, ready in status.slots:
            if module == zygote and ready > 0:
                total += SLOT_READY
                break
    needs, free, capacity = revision.needs, candidate.free, status.capacity
    if packs(revision):
        return total + packed(capacity, free, needs)
    if capacity[2] and not needs[2]:
        total -= KEEPS_GPUS_FREE
    return total + share_left(capacity, free, needs)


def nearness(status: NodeStatus, partners: Near) -> float:
    """Only the closest counts: one host is on one rail and in one zone with itself."""
    if status.node in partners.nodes:
        return SAME_HOST
    labels = dict(status.labels)
    if labels.get(RAIL_LABEL) in partners.rails:
        return SAME_RAIL
    return SAME_ZONE if labels.get(ZONE_LABEL) in partners.zones else 0.0


def packs(revision: Revision) -> bool:
    """By its annotation; else where it needs GPUs."""
    return revision.placement == "pack" or (revision.placement == "auto" and revision.needs.gpus > 0)


def packed(capacity: Resources, free: Resources, needs: Resources) -> float:
    """Half for a node that is in use already, up to half for the little that stays free of what is scarcest."""
    if capacity.gpus:
        opened = free.gpus < capacity.gpus
        return (0.5 if opened else 0.0) + 0.5 / (1 + max(0, free.gpus - needs.gpus))
    return (0.5 if free != capacity else 0.0) + 0.5 * (1 - max(0.0, share_left(capacity, free, needs)))


def share_left(capacity: Resources, free: Resources, needs: Resources) -> float:
    """What stays free of the scarcest resource, as a share, over those that the node has at all."""
    least = 1.0  # indices instead of a loop over tuples: it is asked for every changed node of every decision
    for k in (0, 1, 2, 3, 4):
        size = capacity[k]
        if size:
            share = (free[k] - needs[k]) / size
            if share < least:
                least = share
    return least
