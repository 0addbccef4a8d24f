"""Which of a revision's pods one activator sends to, so that no two activators count on the same slot.

Activators are known by their addresses in the revision's public Endpoints; an activator's place is that in the
sorted list. Every pod belongs to one activator as long as there are no more activators than pods. In Knative:
pickIndices, assignSlice, inferIndex and calculateCapacity of pkg/activator/net/throttler.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Share(NamedTuple):
    """This activator's place among those that serve a revision; place -1: not known to be one of them."""

    place: int = -1
    activators: int = 0


def share_of(me: str, activators: Iterable[str]) -> Share | None:
    """None: not one of them, so that what was known before goes on to hold."""
    addresses = sorted(set(activators))
    return Share(addresses.index(me), len(addresses)) if me in addresses else None


def pick(pods: int, share: Share) -> tuple[int, int, int]:
    """(begin, end, remnants): the pods begin..end, and the number of those left over at the end of the list."""
    if share.activators > pods:
        begin = share.place % pods
        return begin, begin + 1, 0
    size = pods // share.activators
    return share.place * size, (share.place + 1) * size, pods % share.activators


def assign(pods: Sequence[T], share: Share) -> Sequence[T]:
    """The pods of this activator; `pods` sorted by address."""
    if share.place == -1 or len(pods) <= 1 or share.activators <= 1:
        return pods
    begin, end, remnants = pick(len(pods), share)
    own = list(pods[begin:end])
    if share.place < remnants:
        own.append(pods[len(pods) - remnants + share.place])
    return own


def cluster_capacity(concurrency: int, ready: int, activators: int) -> int:
    """How many requests may be in flight through the Service's address, which spreads them itself."""
    whole = concurrency * ready
    return max(1, whole // max(1, activators)) if whole else 0
