"""Taking over a revision: who has yet to say what it has, and when that is enough to act on.

A new home asks every node what it runs and every shard what it uses. It acts (is *open*) when all nodes have
answered or left the view, or after a bounded time; then the store's copy stands in for the nodes that didn't. Slots
that a former home may have given out stay frozen until every shard has answered, or their leases are surely over:
a shard that left the view so lately that it may still be alive (a ghost) can't be asked, unless its process is seen
to have ended. One that leaves before it has answered is such a ghost. Nor can a node that has just left the view (it
is *away*: its agent may be starting again): an instance whose place isn't known may be there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kserve_ext.core.dispatch.fleet import ANY_NODE, NODE_GRACE_S, NOWHERE, Fleet
from kserve_ext.core.facts import Left
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID


class Copy(NamedTuple):
    """The store's copy of an instance; node "?" = it was being placed."""

    instance: InstanceID
    node: NodeID
    addr: str


class Leavers:
    """The nodes that left the view within the time for which they may come back.

    Those that left before the process came are in its first view.
    """

    def __init__(self) -> None:
        self._there: set[NodeID] = set()
        self._left: dict[NodeID, float] = {}

    def view(self, nodes: Iterable[NodeID], left: Iterable[Left], now: float) -> None:
        """`left`: who the view names so."""
        there = set(nodes)
        named = {NodeID(x.id): now - x.age_s for x in left if x.kind == "node"}
        self._left = named | self._left | dict.fromkeys(self._there - there, now)
        self._left = {n: at for n, at in self._left.items() if n not in there and now - at < NODE_GRACE_S}
        self._there = there

    def away(self, now: float) -> set[NodeID]:
        return {node for node, at in self._left.items() if now - at < NODE_GRACE_S}


class TakeOver:
    def __init__(
        self,
        nodes: Iterable[NodeID],
        shards: Iterable[FunctionID],
        ghosts: Iterable[FunctionID],
        copies: Iterable[Copy],
        open_by: float,
        away: Iterable[NodeID] = (),
    ) -> None:
        self.open = False
        self.open_by = open_by
        #: nodes and shards of the view that have yet to say what they have
        self.silent_nodes = set(nodes)
        self.silent_shards = set(shards)
        #: shards that may be alive outside of the view
        self.ghosts = set(ghosts)
        #: nodes that may have something and can't be asked now
        self.away = set(away)
        self._copies = tuple(copies)
        self._answered: set[NodeID] = set()

    def view(self, nodes: set[NodeID], shards: set[FunctionID]) -> set[FunctionID]:
        """Who is back can be asked. Returns the shards that are ghosts from now on."""
        unanswered = self.silent_nodes | self.away
        self.silent_nodes, self.away = unanswered & nodes, unanswered - nodes
        back = self.ghosts & shards
        self.ghosts -= back
        left = self.silent_shards - shards
        self.silent_shards = (self.silent_shards & shards) | back
        self.ghosts |= left
        return left

    def node_answered(self, node: NodeID) -> None:
        self.silent_nodes.discard(node)
        self._answered.add(node)

    @property
    def slots_known(self) -> bool:
        """No shard can be using a slot that this home doesn't know of."""
        return not self.silent_shards and not self.ghosts

    def opens(self, now: float) -> bool:
        """True once: when enough is known to act."""
        if self.open or (self.silent_nodes and now < self.open_by):
            return False
        self.open = True
        return True

    def fill_in(self, fleet: Fleet, now: float) -> None:
        """What the store knows of nodes that didn't answer."""
        for copy in self._copies:
            if copy.node == ANY_NODE:
                fleet.adopt(copy.instance, NOWHERE, "", self.silent_nodes | self.away, now)
            elif copy.node not in self._answered:
                fleet.adopt(copy.instance, copy.node, copy.addr, {copy.node}, now)
        self._copies = ()
