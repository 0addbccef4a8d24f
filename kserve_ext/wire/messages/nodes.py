"""What is asked of a node and its instances, and what a node says unasked.

Start, Commit and Stop carry the epoch of whoever asks: a node refuses those that are older than what it has obeyed.
"""

from __future__ import annotations

from kserve_ext.core.facts import Instance, Mark, NodeStatus, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.wire.messages.base import Message
from kserve_ext.wire.messages.coordinate import Demand


class Update(Message, frozen=True):
    """Node -> its ClusterMgr function, every period and at once when its free resources change."""

    status: NodeStatus


class ModNode(Message, frozen=True):
    """ClusterMgr -> the Schedule function that owns the node. `down` carries the reason, "" = up."""

    status: NodeStatus
    down: str = ""


class Start(Message, frozen=True):
    """Schedule function -> node: admit this instance, and start it unless `reserve`."""

    instance: InstanceID
    revision: Revision
    epoch: int
    home: FunctionID
    home_addr: str
    waiting: tuple[str, ...] = ()  # rpc addresses of shards that hold requests for it
    reserve: bool = False  # admit only; Commit or Cancel follows, or it lapses after reserve_s
    reserve_s: float = 5.0
    marks: tuple[Mark, ...] = ()
    term: int = 0  # since which epoch the sender has this node (core/schedule/handover.py), 0 = not said


class StartReply(Message, frozen=True):
    admitted: bool
    reason: str  # why not, naming the resource and what is free
    status: NodeStatus  # true status of the node, also in a refusal
    stale: bool = False  # refused because the epoch is older than one this node has obeyed
    moved: bool = False  # refused because another Schedule function has this node meanwhile
    brief: bool = False  # `status` leaves out the holdings: they are as last said, and this start


class Commit(Message, frozen=True):
    """Starts (or, with cancel, releases) reserved instances."""

    instances: tuple[InstanceID, ...]
    epoch: int
    cancel: bool = False
    reason: str = ""


class Stop(Message, frozen=True):
    """Home -> node: drain, then end. Idempotent."""

    instance: InstanceID
    epoch: int
    home: FunctionID
    drain_s: float = 30.0
    reason: str = ""


class Probe(Message, frozen=True):
    """Asks a node for its status (Schedule function's probe cache)."""


class Sleep(Message, frozen=True):
    instance: InstanceID
    epoch: int


class Wake(Message, frozen=True):
    instance: InstanceID
    epoch: int


class ModInstance(Message, frozen=True):
    """Node -> home, and -> shards that wait: these instances changed. `full`: all of this revision on this node.

    The reply names those that home does not want; the node stops them.
    """

    revision: RevisionKey
    node: NodeID
    incarnation: int
    instances: tuple[Instance, ...]
    epoch: int
    full: bool = False


class ModInstanceReply(Message, frozen=True):
    home: bool  # False: the receiver is not this revision's home
    unwanted: tuple[InstanceID, ...] = ()
    epoch: int = 0


class Recall(Message, frozen=True):
    """A new home asks nodes which instances of its revisions they run, and shards which slots they use.

    Whoever answers obeys `epoch` from now on: an older Start, grant or Stop for these revisions is refused.
    """

    epoch: int
    home: FunctionID
    home_addr: str
    revisions: tuple[RevisionKey, ...]


class RecallReply(Message, frozen=True):
    """A node's instances, or a shard's state of each of the revisions that it knows."""

    instances: tuple[Instance, ...] = ()
    epoch: int = 0
    demands: tuple[Demand, ...] = ()
