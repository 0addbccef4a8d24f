"""Instances <-> their node agent, which knows where homes are, and the home of their group, which leases prefill."""

from __future__ import annotations

from typing import NamedTuple

from kserve_ext.core.ids import FunctionID, InstanceID, RequestID
from kserve_ext.wire.messages.base import Message


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
    uncached: int = 0  # of these, those that decode does not hold
    prefix: tuple[int, ...] = ()  # hashes of its first blocks (core/dispatch/pairing.py)
    channels: tuple[InstanceID, ...] = ()  # prefill instances to which decode has one that stands
    excluded: tuple[InstanceID, ...] = ()  # prefill instances that are of no use to it now


class PrefillLease(Message, frozen=True):
    lease: str  # "" = none; then `reason` says why
    instance: InstanceID = InstanceID("")
    addr: str = ""  # host:port of the prefill instance's HTTP server
    generation: int = 0
    reason: str = ""
    why: str = ""  # this instance, for a person
    queued: int = 0  # prompt tokens that were to be computed there already
    tokens_s: float = 0.0  # that it computes, 0 = not known


class PrefillPeer(NamedTuple):
    """A prefill instance that may be given out."""

    instance: InstanceID
    addr: str  # host:port of its HTTP server
    generation: int = 0


class WatchPrefill(Message, frozen=True):
    """Decode -> home of the group: which prefill instances there are, as soon as the answer has another tag.

    At the call's deadline it is answered in any case.
    """

    group: str
    tag: str = ""  # of the last answer


class PrefillPeers(Message, frozen=True):
    tag: str  # "" = not known (yet), which says nothing of any peer; ask again later
    peers: tuple[PrefillPeer, ...] = ()


class ReturnPrefill(Message, frozen=True):
    group: str
    lease: str
    failed: str = ""  # the instance did not answer: why
    tokens: int = 0  # computed by it, from `started` until `ended` by its own clock (unix seconds)
    started: float = 0.0
    ended: float = 0.0


class Decoded(Message, frozen=True):
    """Decode -> home of the group, now and then while it works: what it has done since the last time."""

    group: str
    instance: InstanceID
    generated: int  # tokens
    span_s: float
    occupancy: float  # of KV blocks or running requests, whichever is fuller, 0 to 1
    unsent: int = 0  # prompt tokens that prefill instances were too busy to be sent
