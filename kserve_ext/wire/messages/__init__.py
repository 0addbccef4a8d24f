"""What functions, nodes and instances say to each other: one struct a message, one number a method.

A message is encoded as a MessagePack array (msgspec, array_like), the frame around it is wire/frames.py.
Fields are only ever added, at the end and with a default: an older peer ignores them, a newer one fills them.
A call answers with the reply type beside it in METHODS; a refusal that a caller can act on is part of the
reply, everything else is an error frame (frames.ErrorCode).
"""

from __future__ import annotations

from kserve_ext.wire.messages.base import UNREADABLE, Ack, Message
from kserve_ext.wire.messages.connections import Bye, Ping
from kserve_ext.wire.messages.coordinate import (
    Action,
    Broken,
    Coordinate,
    CoordinateReply,
    Demand,
    Grant,
    Greet,
    Greeted,
    MadeRoom,
    MakeRoom,
    Room,
    RoomFor,
)
from kserve_ext.wire.messages.instances import (
    Decoded,
    LeasePrefill,
    Locate,
    Located,
    PrefillLease,
    PrefillPeer,
    PrefillPeers,
    ReturnPrefill,
    WatchPrefill,
)
from kserve_ext.wire.messages.membership import (
    Apply,
    ApplyReply,
    Join,
    Leave,
    Load,
    PublishView,
    Report,
    ReportReply,
)
from kserve_ext.wire.messages.methods import METHODS
from kserve_ext.wire.messages.nodes import (
    Commit,
    ModInstance,
    ModInstanceReply,
    ModNode,
    Probe,
    Recall,
    RecallReply,
    Sleep,
    Start,
    StartReply,
    Stop,
    Update,
    Wake,
)
from kserve_ext.wire.messages.partitions import ClaimNodes, HandedNode, HandNodes, MovedNode
from kserve_ext.wire.messages.people import Describe, Description
from kserve_ext.wire.messages.placement import Item, Placed, Placements, Refused, Schedule
from kserve_ext.wire.messages.standby import FreeSlot, NodeSlots, SlotReply, TakeSlot, WatchSlots
from kserve_ext.wire.messages.store import (
    StoreChanges,
    StoreItems,
    StorePut,
    StorePutReply,
    StoreScan,
    StoreWatch,
)

__all__ = [
    "METHODS",
    "UNREADABLE",
    "Ack",
    "Action",
    "Apply",
    "ApplyReply",
    "Broken",
    "Bye",
    "ClaimNodes",
    "Commit",
    "Coordinate",
    "CoordinateReply",
    "Decoded",
    "Demand",
    "Describe",
    "Description",
    "FreeSlot",
    "Grant",
    "Greet",
    "Greeted",
    "HandNodes",
    "HandedNode",
    "Item",
    "Join",
    "LeasePrefill",
    "Leave",
    "Load",
    "Locate",
    "Located",
    "MadeRoom",
    "MakeRoom",
    "Message",
    "ModInstance",
    "ModInstanceReply",
    "ModNode",
    "MovedNode",
    "NodeSlots",
    "Ping",
    "Placed",
    "Placements",
    "PrefillLease",
    "PrefillPeer",
    "PrefillPeers",
    "Probe",
    "PublishView",
    "Recall",
    "RecallReply",
    "Refused",
    "Report",
    "ReportReply",
    "ReturnPrefill",
    "Room",
    "RoomFor",
    "Schedule",
    "Sleep",
    "SlotReply",
    "Start",
    "StartReply",
    "Stop",
    "StoreChanges",
    "StoreItems",
    "StorePut",
    "StorePutReply",
    "StoreScan",
    "StoreWatch",
    "TakeSlot",
    "Update",
    "Wake",
    "WatchPrefill",
    "WatchSlots",
]
