"""What functions, nodes and instances say to each other: one struct a message, one number a method.

A message is encoded as a MessagePack array (msgspec, array_like), the frame around it is wire/frames.py.
Fields are only ever added, at the end and with a default: an older peer ignores them, a newer one fills them.
A call answers with the reply type beside it in METHODS; a refusal that a caller can act on is part of the
reply, everything else is an error frame (frames.ErrorCode).
"""

from __future__ import annotations

from typing import Final

import msgspec

from kserve_ext.core.facts import Instance, Mark, Member, NodeStatus, Revision, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RequestID, RevisionKey


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all messages."""


class Ack(Message, frozen=True):
    """Done; `epoch` is the answering side's own."""

    epoch: int = 0


# --- membership: functions and nodes <-> top-level controller


class Load(Message, frozen=True):
    """What a member reports of itself every period."""

    cpu_seconds: float = 0.0  # since start
    requests: int = 0  # HTTP requests or calls since start
    queued: int = 0  # held requests, waiting decisions
    instances: int = 0


class Join(Message, frozen=True):
    """A function or node starts, or has lost the controller. `epoch` is the highest it has seen."""

    member: Member
    epoch: int = 0


class Leave(Message, frozen=True):
    """A member drains and goes; a node that ClusterMgr found dead is reported by `by`."""

    id: FunctionID
    incarnation: int
    by: FunctionID = FunctionID("")
    reason: str = ""


class Report(Message, frozen=True):
    """The periodic report; it is also the heartbeat of a function (a node's heartbeat is Update)."""

    id: FunctionID
    incarnation: int
    epoch: int
    load: Load = Load()


class ReportReply(Message, frozen=True):
    epoch: int
    known: bool  # False: join again


class PublishView(Message, frozen=True):
    """Push of the view; the answer is the acknowledgement that makes it consistent."""

    view: View


class Apply(Message, frozen=True):
    """A function past its threshold applies for scale-out of its kind."""

    id: FunctionID
    kind: str
    srps: float  # scaling requests per second


class ApplyReply(Message, frozen=True):
    granted: int
    reason: str = ""


# --- nodes


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


class StartReply(Message, frozen=True):
    admitted: bool
    reason: str  # why not, naming the resource and what is free
    status: NodeStatus  # true status of the node, also in a refusal
    stale: bool = False  # refused because the epoch is older than one this node has obeyed


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


# --- placement


class Item(Message, frozen=True):
    """`ids` instances of one revision to place."""

    revision: Revision
    ids: tuple[InstanceID, ...]


class Schedule(Message, frozen=True):
    """Home -> Schedule function. `gang`: all of them or none."""

    items: tuple[Item, ...]
    epoch: int
    home: FunctionID
    home_addr: str
    waiting: tuple[str, ...] = ()
    gang: bool = False
    hops: int = 0  # partitions that passed it on; bounds the search
    marks: tuple[Mark, ...] = ()
    reserve: bool = False  # admit only: the asking Schedule function commits or cancels at the nodes


class Placed(Message, frozen=True):
    instance: InstanceID
    node: NodeID
    addr: str  # the node agent's rpc address


class Refused(Message, frozen=True):
    """`unknown` names a node that was asked and whose answer was lost ("?": which one isn't known either):
    the instance may exist, and counts until its node has reported or is gone."""

    instance: InstanceID
    reason: str  # which resource is short where, for a person
    unknown: NodeID = NodeID("")
    never: bool = False  # no node of the cluster is large enough, even when empty


class Placements(Message, frozen=True):
    placed: tuple[Placed, ...]
    refused: tuple[Refused, ...] = ()
    stale: bool = False
    epoch: int = 0


# --- Coordinate: actions between Schedule functions, and between homes and shards


class Room(msgspec.Struct, array_like=True, frozen=True, tag=1, gc=False):
    """Schedule function's gossip: the largest and the total free room of its partition, nodes in it."""

    function: FunctionID
    free: tuple[int, ...]  # Resources, summed
    largest: tuple[int, ...]  # Resources of the roomiest node
    nodes: int
    capacity: tuple[int, ...] = ()  # Resources that no node here exceeds; () = not all nodes are known yet


class Demand(msgspec.Struct, array_like=True, frozen=True, tag=2, gc=False):
    """Shard -> home: its whole state of one revision (core/home_facts.Demand, field by field)."""

    revision: RevisionKey
    seq: int
    held: int
    in_flight: int
    wanted: int
    arrived: int
    completed: int
    concurrency_seconds: float
    span_s: float
    uses: tuple[tuple[InstanceID, int], ...] = ()
    leases: tuple[tuple[InstanceID, int], ...] = ()
    incarnation: int = 0
    term: int = 0
    granted: int = 0
    bound_s: float = 0.0
    bound_to: FunctionID = FunctionID("")
    shuns: tuple[InstanceID, ...] = ()


class Grant(msgspec.Struct, array_like=True, frozen=True, tag=3, gc=False):
    """Home -> shard: the complete set of slots it may use of a revision (core/home_facts.Grant, field by field)."""

    revision: RevisionKey
    home: FunctionID
    seq: int
    ttl_s: float
    slots: tuple[tuple[InstanceID, str, int], ...]
    refusal: str = ""
    permanent: bool = False
    retry_after_s: float = 0.0
    term: int = 0
    answers: int = 0
    ages: tuple[float, ...] = ()
    scarce: bool = False
    needed: bool = False


class Broken(msgspec.Struct, array_like=True, frozen=True, tag=6, gc=False):
    """Shard -> home: a connection to this instance was refused or reset; home verifies with its node."""

    revision: RevisionKey
    instance: InstanceID
    reason: str


Action = Room | Demand | Grant | Broken


class Coordinate(Message, frozen=True):
    """A batch of actions; the reply may carry actions back (a Grant for a Demand), which saves a call."""

    sender: FunctionID
    sender_addr: str
    epoch: int
    actions: tuple[Action, ...]


class CoordinateReply(Message, frozen=True):
    """`elsewhere`: the revisions of those Demands of which the receiver isn't the home."""

    actions: tuple[Action, ...] = ()
    epoch: int = 0
    elsewhere: tuple[RevisionKey, ...] = ()


# --- instances <-> node agent and home


class Locate(Message, frozen=True):
    """Instance -> its node agent: which Dispatch function is the home of this key?"""

    home_key: str


class Located(Message, frozen=True):
    home: FunctionID
    addr: str
    epoch: int


class LeasePrefill(Message, frozen=True):
    """Decode's front -> home of the group: a slot of a prefill instance for one request.

    The home holds the call as it would hold a request, up to the call's deadline.
    """

    group: str
    request: RequestID
    tokens: int  # that prefill would compute
    instance: InstanceID  # of the asking decode instance


class PrefillLease(Message, frozen=True):
    lease: str  # "" = none; then `reason` says why
    instance: InstanceID = InstanceID("")
    addr: str = ""  # host:port of the prefill instance's HTTP server
    generation: int = 0
    reason: str = ""


class ReturnPrefill(Message, frozen=True):
    group: str
    lease: str
    failed: str = ""  # the instance did not answer: why


# --- activators in a Knative cluster


class Greet(Message, frozen=True):
    """One activator to another, every second: it is there, and since when (its process's start, in ns)."""

    incarnation: int


class Greeted(Message, frozen=True):
    incarnation: int


# --- state store (hosted by the controller in the embedded default)


class StorePut(Message, frozen=True):
    """Writes, in order; a value of None deletes. `expect` (revision of the key, 0 = absent) makes it conditional."""

    items: tuple[tuple[str, bytes | None], ...]
    expect: tuple[tuple[str, int], ...] = ()


class StorePutReply(Message, frozen=True):
    ok: bool
    revision: int
    conflict: str = ""


class StoreScan(Message, frozen=True):
    prefix: str


class StoreItems(Message, frozen=True):
    """`items` are key, value, revision of the last write."""

    items: tuple[tuple[str, bytes, int], ...]
    revision: int


class StoreWatch(Message, frozen=True):
    """Long poll: answers as soon as something under `prefix` is newer than `after`, or at the deadline, empty.

    `reset` in the answer: history since `after` is gone, scan again.
    """

    prefix: str
    after: int


class StoreChanges(Message, frozen=True):
    items: tuple[tuple[str, bytes | None, int], ...]
    revision: int
    reset: bool = False


# --- people


class Describe(Message, frozen=True):
    """CLI, by way of the objects process -> any function or node: its state for status, top and doctor."""

    what: str = "status"  # status | request | instance | log
    key: str = ""


class Description(Message, frozen=True):
    """`body` is JSON: its shape belongs to the part that answers (docs/protocol.md)."""

    body: bytes


#: What msgspec raises for bytes that are no such message: the second for text that is no UTF-8.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError)

METHODS: Final[dict[int, tuple[type[Message], type[Message]]]] = {
    1: (Join, PublishView),
    2: (Leave, Ack),
    3: (Report, ReportReply),
    4: (PublishView, Ack),
    5: (Apply, ApplyReply),
    10: (Update, Ack),
    11: (ModNode, Ack),
    12: (Start, StartReply),
    13: (Commit, StartReply),
    14: (Stop, Ack),
    15: (Probe, Update),
    16: (Sleep, StartReply),
    17: (Wake, StartReply),
    18: (ModInstance, ModInstanceReply),
    19: (Recall, RecallReply),
    30: (Schedule, Placements),
    31: (Coordinate, CoordinateReply),
    40: (Locate, Located),
    41: (LeasePrefill, PrefillLease),
    42: (ReturnPrefill, Ack),
    50: (StorePut, StorePutReply),
    51: (StoreScan, StoreItems),
    52: (StoreWatch, StoreChanges),
    60: (Describe, Description),
    70: (Greet, Greeted),
}
