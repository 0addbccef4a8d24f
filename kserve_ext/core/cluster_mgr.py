"""A ClusterMgr function's machine: liveness and status of its share of the nodes.

A node's Update is its heartbeat. What changed in it goes to the Schedule function that owns the node at once, what
did not at most once a second. A node is down when it is silent for SILENT_S or its connection is lost and not back
within LOST_S; a node that has just become ours has SILENT_S to find us. Time in which this process itself did not run
is nobody's silence. A dead node is reported again every SILENT_S until the view is without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kserve_ext.core.facts import NodeStatus, Resources, View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.partitions import owners

LOST_S = 1.0
SILENT_S = 3.0
REFRESH_S = 1.0
DEAF_S = 0.5  # a longer gap between ticks means that this process did not run


class TellOwner(NamedTuple):
    """ModNode to the owning Schedule function; `down` is the reason, "" = up."""

    owner: FunctionID
    status: NodeStatus
    down: str = ""


class TellController(NamedTuple):
    """Leave to the controller on behalf of a dead node."""

    status: NodeStatus
    reason: str


Instruction = TellOwner | TellController


@dataclass(slots=True)
class _Node:
    status: NodeStatus
    heard_at: float
    connection: int
    lost_at: float | None = None
    told_at: float = -1e9
    told: NodeStatus | None = None
    told_owner: FunctionID | None = None


class ClusterMgrMachine:
    """Verbs take `now` (seconds, monotonic)."""

    def __init__(self, me: FunctionID, now: float = 0.0) -> None:
        self.me = me
        self._view = View()
        #: the Schedule function and the ClusterMgr function of each node of the view
        self._owners: dict[NodeID, FunctionID] = {}
        self._managers: dict[NodeID, FunctionID] = {}
        self._nodes: dict[NodeID, _Node] = {}
        #: nodes of ours in the view that have not spoken to us yet, and since when we wait
        self._awaited: dict[NodeID, float] = {}
        self._ticked_at = now

    def update(self, status: NodeStatus, connection: int, now: float) -> list[Instruction]:
        """A node's heartbeat."""
        self._awaited.pop(status.node, None)
        node = self._nodes.get(status.node)
        if node is None:
            node = self._nodes[status.node] = _Node(status, now, connection)
        elif (status.incarnation, status.seq) >= (node.status.incarnation, node.status.seq):
            node.status = status
        else:
            return []
        node.heard_at, node.connection, node.lost_at = now, connection, None
        return self._tell(node, now)

    def lost(self, connection: int, now: float) -> None:
        """A connection has ended; nodes last heard on it have LOST_S to come back."""
        for node in self._nodes.values():
            if node.connection == connection:
                node.lost_at = now

    def view(self, view: View, now: float) -> list[Instruction]:
        """A new view: other owners, other nodes of ours."""
        self._view = view
        self._owners, self._managers = owners(view, "schedule"), owners(view, "cluster_mgr")
        ours = {node for node, manager in self._managers.items() if manager == self.me}
        for member in view.of("node"):
            if (node := NodeID(member.id)) not in ours:
                self._nodes.pop(node, None)
        self._awaited = {n: self._awaited.get(n, now) for n in sorted(ours - self._nodes.keys())}
        return [i for node in self._nodes.values() for i in self._tell(node, now)]

    def tick(self, now: float) -> list[Instruction]:
        gap, self._ticked_at = now - self._ticked_at, now
        if gap > DEAF_S:
            self._forgive(gap, now)
        out: list[Instruction] = []
        for name, node in list(self._nodes.items()):
            reason = self._dead(node, now)
            if not reason:
                continue
            del self._nodes[name]
            if self._view.epoch and self._managers.get(name) != self.me:
                continue  # it spoke to us under an older view, and now does to whom it belongs
            out.append(TellController(node.status, reason))
            owner = self._owners.get(name)
            if owner:
                out.append(TellOwner(owner, node.status, reason))
            if self._view.member(name) is not None:
                self._awaited[name] = now
        for name, since in list(self._awaited.items()):
            member = self._view.member(name)
            if now - since >= SILENT_S and member is not None:
                self._awaited[name] = now
                unknown = NodeStatus(name, member.addr, member.incarnation, 0, Resources(), Resources())
                out.append(TellController(unknown, f"{self.me} has heard nothing of it for {SILENT_S} s"))
        return out

    def nodes(self) -> list[tuple[NodeStatus, float]]:
        """Status and time last heard of every node, in order of id."""
        return [(n.status, n.heard_at) for _, n in sorted(self._nodes.items())]

    # --- inside

    def _tell(self, node: _Node, now: float) -> list[Instruction]:
        owner = self._owners.get(node.status.node)
        if not owner:
            return []
        same = node.told is not None and node.told._replace(seq=0) == node.status._replace(seq=0)
        if same and owner == node.told_owner and now - node.told_at < REFRESH_S:
            return []
        node.told, node.told_at, node.told_owner = node.status, now, owner
        return [TellOwner(owner, node.status)]

    def _forgive(self, gap: float, now: float) -> None:
        for node in self._nodes.values():
            node.heard_at = min(now, node.heard_at + gap)
            if node.lost_at is not None:
                node.lost_at = min(now, node.lost_at + gap)
        self._awaited = {name: min(now, since + gap) for name, since in self._awaited.items()}

    def _dead(self, node: _Node, now: float) -> str:
        if node.lost_at is not None and now - node.lost_at >= LOST_S:
            return f"its connection was lost {now - node.lost_at:.1f} s ago"
        if now - node.heard_at >= SILENT_S:
            return f"silent for {now - node.heard_at:.1f} s"
        return ""
