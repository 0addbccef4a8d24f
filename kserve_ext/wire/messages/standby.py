"""What the autoscaler and a node's agent say of standby pods in a Knative cluster.

Neither side remembers for the other: an agent tells all its slots whenever one changes, and the autoscaler acts on
that. Who may take slots of a revision is whoever has its bucket; `term` fences a former holder.
"""

from __future__ import annotations

from kserve_ext.core.facts import NodeStatus
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import Assignment, Slot
from kserve_ext.wire.messages.base import Message


class WatchSlots(Message, frozen=True):
    """Autoscaler -> agent; answered at once when `tag` is not the latest, else at a change, or after a while."""

    tag: str = ""


class NodeSlots(Message, frozen=True):
    tag: str
    status: NodeStatus
    slots: tuple[Slot, ...] = ()


class TakeSlot(Message, frozen=True):
    """Autoscaler -> agent: this standby pod starts this revision. Answered when it is accepted, not when it serves.

    Idempotent: a slot that has this revision already accepts again. When it serves, the agent tells `tell` at once
    (ModInstance), and whoever watches its slots.
    """

    pod: str
    uid: str
    assignment: Assignment
    tell: tuple[str, ...] = ()  # rpc addresses of activators
    term: int = 0  # transitions of the Lease of the revision's bucket


class FreeSlot(Message, frozen=True):
    """Autoscaler -> agent: it drains, and is a standby pod again. Nothing is done where it has another revision."""

    pod: str
    uid: str
    revision: RevisionKey
    term: int = 0


class SlotReply(Message, frozen=True):
    """`reason` "" = done; else why not, for a person, and `stale` where a newer term has been obeyed."""

    reason: str = ""
    stale: bool = False
    slot: Slot | None = None  # as it is now
