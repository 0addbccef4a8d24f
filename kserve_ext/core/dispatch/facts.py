"""What shards and homes tell each other (Demand, Grant), and what a home asks its shell to carry out.

Both Demand and Grant are complete states, never differences: a lost or repeated one does no harm, and a Grant
with fewer slots is how slots are taken back. The fields are those of the messages in wire/messages/, in the
same order. A *term* is the epoch of the view under which a home took over; terms and sequence numbers only
grow, and what is older than what was obeyed is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from kserve_ext.core.facts import Revision
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.pulse import HUNG_S

LEASE_TTL_S: Final = 3.0  # a shard may use limited slots so long after it sent the Demand that was answered
#: A shard of the view that says nothing has left it by then: it is taken for dead as soon as its lease is over
#: (core/membership.py: SILENT_S), and a moment later everybody has heard.
GONE_S: Final = LEASE_TTL_S + 1.0
#: Where the end of a shard's process would be seen, what it used is not free before: it may be paused, and its
#: requests go on. For so long: a process that does not turn is ended by whoever watches it (core/pulse.py).
SEEN_TTL_S: Final = HUNG_S + 10.0
REPORT_S: Final = 0.5  # a shard with anything to report reports so often
QUIET_S: Final = 10.0  # a shard that has had nothing to do for so long forgets instances and falls silent
UNLIMITED: Final = -1
WAITS: Final = 16  # held requests of which a Demand says how long they have waited


class Demand(NamedTuple):
    """A shard's whole state of one revision."""

    revision: RevisionKey
    seq: int
    held: int
    in_flight: int
    wanted: int  # slots it could use now beyond those it has
    arrived: int  # since its last answered Demand
    completed: int
    concurrency_seconds: float
    span_s: float
    uses: tuple[tuple[InstanceID, int], ...] = ()
    leases: tuple[tuple[InstanceID, int], ...] = ()  # limited slots that it may use, or still uses
    incarnation: int = 0  # of the shard's process
    term: int = 0  # the newest term it has obeyed: it has followed no older home since
    granted: int = 0  # seq of the newest Grant of that term that it has applied
    bound_s: float = 0.0  # in Knative: for so long its own slots are still lent to another home,
    bound_to: FunctionID = FunctionID("")  # this one
    shuns: tuple[InstanceID, ...] = ()  # those that it can't reach from where it is
    prefers: tuple[tuple[InstanceID, int], ...] = ()  # idle slots of these would be better than of others
    waits_us: tuple[int, ...] = ()  # how long its held requests have waited, WAITS of them, the oldest first


class Grant(NamedTuple):
    """The complete set of slots that a shard may use of one revision."""

    revision: RevisionKey
    home: FunctionID
    seq: int
    ttl_s: float
    slots: tuple[tuple[InstanceID, str, int], ...]  # without an address: promised, it isn't ready yet
    refusal: str = ""
    permanent: bool = False
    retry_after_s: float = 0.0
    term: int = 0
    answers: int = 0  # seq of the Demand that it answers, 0 = it was pushed
    ages: tuple[float, ...] = ()  # of each of `slots`: seconds since it was ready
    scarce: bool = False  # others wait: idle slots are to be given back at once
    needed: bool = False  # slots were short a while ago: report on


# --- instructions


@dataclass(frozen=True, slots=True)
class SendGrant:
    """Push; the shard's Demand in the answer comes back as demand()."""

    shard: FunctionID
    grant: Grant


@dataclass(frozen=True, slots=True)
class Place:
    """Call a Schedule function: then placed() with the outcome of every id."""

    items: tuple[tuple[Revision, tuple[InstanceID, ...]], ...]
    gang: bool
    waiting: tuple[FunctionID, ...]  # shards that hold requests: the node tells them too
    near: tuple[NodeID, ...] = ()  # where partners of the group run
    waited_s: float = 0.0  # since the first refusal for lack of room
    at: FunctionID | None = None  # the Schedule function that keeps room for it


@dataclass(frozen=True, slots=True)
class StopInstance:
    """Repeated until its node says that it is gone."""

    revision: RevisionKey
    instance: InstanceID
    node: NodeID
    drain_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class AskNode:
    """Recall one revision from one node: then node_says() with everything it runs of it; repeated until then."""

    revision: RevisionKey
    node: NodeID


@dataclass(frozen=True, slots=True)
class Remember:
    """Write-behind copy of where an instance is; node "" = it is no more, "?" = it is being placed."""

    revision: RevisionKey
    instance: InstanceID
    node: NodeID
    addr: str = ""


@dataclass(frozen=True, slots=True)
class Retake:
    """A shard has obeyed a newer home than this one: take over anew under the present view, or let go."""

    term: int


Instruction = SendGrant | Place | StopInstance | AskNode | Remember | Retake


class Outcome(NamedTuple):
    """What became of one id of a Place. Not placed and `unknown` empty: it certainly doesn't exist."""

    instance: InstanceID
    node: NodeID = NodeID("")  # where it was admitted
    reason: str = ""  # why not
    unknown: NodeID = NodeID("")  # the answer of this node was lost; "?" = it is not known which
    never: bool = False  # no node of the cluster is large enough, even when empty
