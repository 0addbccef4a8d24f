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


class PrefillLease(Message, frozen=True):
    lease: str  # "" = none; then `reason` says why
    instance: InstanceID = InstanceID("")
    addr: str = ""  # host:port of the prefill instance's HTTP server
    generation: int = 0
    reason: str = ""


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
