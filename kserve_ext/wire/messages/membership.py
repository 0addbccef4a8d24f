"""Functions and nodes <-> top-level controller: coming, going, reporting, and the view that follows from it."""

from __future__ import annotations

from kserve_ext.core.facts import Member, Resources, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.wire.messages.base import Message


class Load(Message, frozen=True):
    """What a member reports of itself every period."""

    cpu_seconds: float = 0.0  # since start
    requests: int = 0  # HTTP requests or calls since start
    queued: int = 0  # held requests, waiting decisions
    instances: int = 0
    srps: float = (
        0.0  # scaling requests a second: of the work that its threshold counts, what was asked of it
    )
    busy: float = 0.0  # share of one core that its process used
    queue_age_s: float = 0.0  # how late its loop came to what was due, at worst
    free: Resources = Resources()  # of a node: what a new instance may take


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
    threshold: float = (
        0.0  # srps above which a function of this kind applies for scale-out; 0 = it never does
    )
    leader: str = (
        ""  # known = False: the rpc address of the controller to join, "" = this one, or nobody's known
    )


class PublishView(Message, frozen=True):
    """Push of the view; the answer is the acknowledgement that makes it consistent.

    `leader`: the rpc address of the controller that leads; in the answer of one that doesn't, the view is empty.
    """

    view: View
    leader: str = ""


class Apply(Message, frozen=True):
    """A function past its threshold applies for scale-out of its kind."""

    id: FunctionID
    kind: str
    srps: float  # scaling requests per second
    load: Load = Load()  # that is past the threshold


class ApplyReply(Message, frozen=True):
    """The same for all that apply while one scale-out is under way."""

    granted: int
    reason: str = ""
