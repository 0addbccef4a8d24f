"""Who owns a key among Knative's autoscaler buckets, and which activators a revision's requests go by way of.

Bit for bit the consistent hash of knative.dev/pkg/hash (hash.go, bucketer.go), because stock and our own parts
must agree on it while both are there: members and targets are placed on a circle of 2048 slots by FNV-1a, and a
subset is picked by steps of a size that the target gives. Names are those of pkg/autoscaler/bucket. Never says
who holds a bucket: that is a Lease's business.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final, NamedTuple

UNIVERSE: Final = 2048
#: Service, EndpointSlice and Lease of a bucket have its name; so has the first label of a host that means one.
PREFIX: Final = "autoscaler-bucket"

_START: Final = b"start-angle-salt"
_STEP: Final = b"step-angle-salt"
_REMEMBERED: Final = 16384


def choose_subset(members: Iterable[str], count: int, target: str) -> list[str]:
    """`count` of the members for this target, sorted; all of them if there aren't more."""
    ordered = sorted(set(members))
    if count >= len(ordered):
        return ordered
    if len(ordered) > UNIVERSE:
        raise ValueError(f"{len(ordered)} members don't fit {UNIVERSE} slots")
    key = target.encode()
    names = _place(ordered, key)
    slots = sorted(names)
    angle, step = _fnv1a(key + _START) % UNIVERSE, _fnv1a(key + _STEP) % UNIVERSE
    chosen: set[int] = set()
    while len(chosen) < count:
        at = bisect_left(slots, angle) % len(slots)
        while at in chosen:
            at = (at + 1) % len(slots)
        chosen.add(at)
        angle = (angle + step) % UNIVERSE
    return sorted(names[slots[at]] for at in chosen)


def _place(members: list[str], target: bytes) -> dict[int, str]:
    """Slot to member, each in one of its own: whoever comes second hashes on, with the former hash as salt."""
    names: dict[int, str] = {}
    for member in members:
        text = member.encode() + target
        hashed = _fnv1a(text)
        while hashed % UNIVERSE in names:
            text += b"%x" % hashed
            hashed = _fnv1a(text)
        names[hashed % UNIVERSE] = member
    return names


def _fnv1a(data: bytes) -> int:
    hashed = 0xCBF29CE484222325
    for byte in data:
        hashed = (hashed ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return hashed


class Buckets:
    """A fixed set of buckets. Remembers owners, since every statistics message asks for one."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        self._owners: dict[str, str] = {}

    @classmethod
    def of(cls, total: int) -> Buckets:
        """The autoscaler's, of which there are `total` (config-leader-election: buckets)."""
        return cls(bucket_name(ordinal, total) for ordinal in range(total))

    def owner(self, key: str) -> str:
        """The bucket of a revision, by its key namespace/name."""
        found = self._owners.get(key)
        if found is None:
            if len(self._owners) >= _REMEMBERED:
                self._owners.clear()
            (found,) = choose_subset(self.names, 1, key)
            self._owners[key] = found
        return found


def bucket_name(ordinal: int, total: int) -> str:
    return f"{PREFIX}-{ordinal:02d}-of-{total:02d}"


def bucket_of_host(host: str) -> str | None:
    """The bucket that a request to this host means; None if it came by way of another name or an address."""
    return host.partition(".")[0] if host.startswith(PREFIX) else None


class Holder(NamedTuple):
    """Who holds a Lease, as written there: <pod name>_<pod IP>."""

    pod: str
    ip: str

    def __str__(self) -> str:
        return f"{self.pod}_{self.ip}"

    @classmethod
    def parse(cls, identity: str) -> Holder | None:
        """None if this is no identity of an autoscaler."""
        pod, found, ip = identity.partition("_")
        return cls(pod, ip) if found and ip else None
