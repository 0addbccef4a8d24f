"""Actions that go in batches: between Schedule functions, and between homes and shards; and activators' greetings.

Demand and Grant are whole states, so that one may be lost or come twice.
"""

from __future__ import annotations

import msgspec

from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.wire.messages.base import Message


class Room(msgspec.Struct, array_like=True, frozen=True, tag=1, gc=False):
    """Gossip among Schedule functions: one's total and largest free room, and nodes (core/schedule/rooms.py)."""

    function: FunctionID
    free: tuple[int, ...]  # Resources, summed
    largest: tuple[int, ...]  # Resources of the roomiest node
    nodes: int
    capacity: tuple[int, ...] = ()  # Resources that no node here exceeds; () = not all nodes are known yet
    version: tuple[int, int] = (0, 0)  # the function's incarnation, and its count of changes


class Demand(msgspec.Struct, array_like=True, frozen=True, tag=2, gc=False):
    """Shard -> home: its whole state of one revision (core/dispatch/facts.Demand, field by field)."""

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
    prefers: tuple[tuple[InstanceID, int], ...] = ()
    waits_us: tuple[int, ...] = ()


class Grant(msgspec.Struct, array_like=True, frozen=True, tag=3, gc=False):
    """Home -> shard: all slots that it may use of a revision (core/dispatch/facts.Grant, field by field)."""

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


class RoomFor(msgspec.Struct, array_like=True, frozen=True, tag=20, gc=False):
    """Schedule function -> home: there is room for these revisions now, kept for a moment. Not wanted any more: they
    are in the reply's `elsewhere`."""

    function: FunctionID
    revisions: tuple[RevisionKey, ...]


class MakeRoom(msgspec.Struct, array_like=True, frozen=True, tag=21, gc=False):
    """Schedule function -> home of `victim`: `count` of its instances on `node` shall go, for higher priorities."""

    victim: RevisionKey
    node: NodeID
    count: int
    priority: int  # of those that it is for
    reason: str


class MadeRoom(msgspec.Struct, array_like=True, frozen=True, tag=22, gc=False):
    """The answer: so many go; the others can't be spared."""

    victim: RevisionKey
    node: NodeID
    count: int


Action = RoomFor | MakeRoom | MadeRoom | Room | Demand | Grant | Broken


class Coordinate(Message, frozen=True):
    """A batch of actions; the reply may carry actions back (a Grant for a Demand), which saves a call.

    `wants`: these are all Rooms that the sender knows; the reply carries those that it lacks.
    """

    sender: FunctionID
    sender_addr: str
    epoch: int
    actions: tuple[Action, ...]
    wants: bool = False


class CoordinateReply(Message, frozen=True):
    """`elsewhere`: the revisions of those Demands of which the receiver isn't the home."""

    actions: tuple[Action, ...] = ()
    epoch: int = 0
    elsewhere: tuple[RevisionKey, ...] = ()


class Greet(Message, frozen=True):
    """One activator to another, every second: it is there, and since when (its process's start, in ns)."""

    incarnation: int


class Greeted(Message, frozen=True):
    incarnation: int
