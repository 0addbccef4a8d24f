"""Which message has which number, and what answers it. Numbers are never given away again."""

from __future__ import annotations

from typing import Final

from kserve_ext.wire.messages.base import Ack, Message
from kserve_ext.wire.messages.connections import Bye, Ping
from kserve_ext.wire.messages.coordinate import Coordinate, CoordinateReply, Greet, Greeted
from kserve_ext.wire.messages.instances import (
    Decoded,
    LeasePrefill,
    Locate,
    Located,
    PrefillLease,
    PrefillPeers,
    ReturnPrefill,
    WatchPrefill,
)
from kserve_ext.wire.messages.membership import (
    Apply,
    ApplyReply,
    Join,
    Leave,
    PublishView,
    Report,
    ReportReply,
)
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
from kserve_ext.wire.messages.partitions import ClaimNodes, HandNodes
from kserve_ext.wire.messages.people import Describe, Description
from kserve_ext.wire.messages.placement import Placements, Schedule
from kserve_ext.wire.messages.standby import FreeSlot, NodeSlots, SlotReply, TakeSlot, WatchSlots
from kserve_ext.wire.messages.store import (
    StoreChanges,
    StoreItems,
    StorePut,
    StorePutReply,
    StoreScan,
    StoreWatch,
)

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
    32: (ClaimNodes, HandNodes),
    40: (Locate, Located),
    41: (LeasePrefill, PrefillLease),
    42: (ReturnPrefill, Ack),
    43: (WatchPrefill, PrefillPeers),
    44: (Decoded, Ack),
    50: (StorePut, StorePutReply),
    51: (StoreScan, StoreItems),
    52: (StoreWatch, StoreChanges),
    60: (Describe, Description),
    70: (Greet, Greeted),
    71: (WatchSlots, NodeSlots),
    72: (TakeSlot, SlotReply),
    73: (FreeSlot, SlotReply),
    80: (Ping, Ack),
    81: (Bye, Ack),
}
