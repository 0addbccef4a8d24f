"""The order of all nodes for each shape of instance, kept from one decision to the next.

Between two decisions few nodes change: those that were started on, and those that have reported. A *shape* (what
decides a score: needs, slot, labels, packed or spread) has a heap of the nodes that fit; a change of a node is only
noted, and entered when the shape is asked for the next time. So a decision costs the changes since the last one, not
the number of nodes. What has changed since it was entered is skipped when it comes to the top. Those that hold a
model have a heap of their own: a model counts for more than all else together, so that the best of them, if any
fits, is the best of all, and revisions that differ by nothing but their model share the other heap.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping

from kserve_ext.core.facts import Resources, Revision
from kserve_ext.core.ids import NodeID
from kserve_ext.core.schedule.filters import Candidate, fits
from kserve_ext.core.schedule.scores import NOWHERE, Near, packs, score

MOST_SHAPES = 1024
Key = tuple[Resources, str, tuple[tuple[str, str], ...], bool, Near, str]


def shape_of(revision: Revision, partners: Near, model: str) -> Key:
    """Revisions of one shape see the nodes in one order. `model`: only the nodes that hold it."""
    zygote = revision.command.zygote
    return revision.needs, zygote, revision.node_selector, packs(revision), partners, model


class _Shape:
    """One heap; `seen` is how much of the list of changes it has entered."""

    __slots__ = ("entered", "heap", "model", "partners", "revision", "seen", "stamp")

    def __init__(self, revision: Revision, partners: Near, model: str) -> None:
        if not model:  # others share this heap, and have other models or none
            revision = revision._replace(model=revision.model._replace(uri=""))
        self.revision, self.partners, self.model = revision, partners, model
        self.heap: list[tuple[float, NodeID, int]] = []
        #: the stamp of each node's valid entry
        self.entered: dict[NodeID, int] = {}
        self.stamp = 0
        self.seen = -1


class Ranking:
    def __init__(self, candidates: Mapping[NodeID, Candidate]) -> None:
        """`candidates` is looked into, never copied: its owner says which of them changed."""
        self._candidates = candidates
        self._shapes: dict[Key, _Shape] = {}
        #: nodes that have changed, oldest first; the first `_dropped` of all times are not kept
        self._changes: list[NodeID] = []
        self._dropped = 0

    def changed(self, node: NodeID) -> None:
        """Its candidate is another, or gone."""
        self._changes.append(node)
        if len(self._changes) > 2 * len(self._candidates) + 64:  # whoever is so far behind starts anew
            half = len(self._changes) // 2
            del self._changes[:half]
            self._dropped += half

    def best(
        self, revision: Revision, tried: Collection[NodeID] = (), partners: Near = NOWHERE
    ) -> Candidate | None:
        """The node with the highest score of those that fit and weren't tried; of equal ones the lowest id."""
        model = revision.model.uri
        found = self._top(revision, tried, partners, model) if model else None
        return found or self._top(revision, tried, partners, "")

    def _top(
        self, revision: Revision, tried: Collection[NodeID], partners: Near, model: str
    ) -> Candidate | None:
        key = shape_of(revision, partners, model)
        shape = self._shapes.pop(key, None)
        if shape is None:
            shape = _Shape(revision, partners, model)
            if len(self._shapes) >= MOST_SHAPES:
                del self._shapes[next(iter(self._shapes))]  # the one that wasn't asked for longest
        self._shapes[key] = shape
        self._catch_up(shape)
        heap, entered = shape.heap, shape.entered
        aside: list[tuple[float, NodeID, int]] = []
        found: Candidate | None = None
        while heap:
            top = heap[0]
            if entered.get(top[1]) != top[2]:
                heapq.heappop(heap)
            elif top[1] in tried:
                aside.append(heapq.heappop(heap))
            else:
                found = self._candidates[top[1]]
                break
        for entry in aside:
            heapq.heappush(heap, entry)
        return found

    def _catch_up(self, shape: _Shape) -> None:
        end = self._dropped + len(self._changes)
        if shape.seen == end:
            return
        anew = shape.seen < self._dropped or len(shape.heap) > 2 * len(self._candidates) + 64
        if anew:
            shape.heap, shape.entered = [], {}
            self._enter(shape, self._candidates)
        else:
            self._enter(shape, set(self._changes[shape.seen - self._dropped :]))
        shape.seen = end

    def _enter(self, shape: _Shape, nodes: Iterable[NodeID]) -> None:
        revision, partners, model = shape.revision, shape.partners, shape.model
        for node in nodes:
            candidate = self._candidates.get(node)
            if candidate is None or (model and model not in candidate.status.models):
                shape.entered.pop(node, None)
                continue
            if not fits(revision, candidate):
                shape.entered.pop(node, None)
                continue
            shape.stamp += 1
            shape.entered[node] = shape.stamp
            heapq.heappush(shape.heap, (-score(revision, candidate, partners), node, shape.stamp))
