"""Which device, port, address and packet size a side uses, and whether two sides' choices can talk. Pure.

A port is usable when its link is up and it has an address that can be routed: on Ethernet a RoCE v2 GID, IPv4 before
IPv6 before link-local; on InfiniBand GID 0 and a LID. RoCE v1 is not used: it does not leave its own network segment.
What is not usable says why, in words for whoever has to change it.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

Link = Literal["ethernet", "infiniband"]
GidKind = Literal["infiniband", "roce1", "roce2"]
Family = Literal["ipv4", "ipv6", "link-local", "infiniband"]
_PREFERENCE: Final[tuple[Family, ...]] = ("infiniband", "ipv4", "ipv6", "link-local")
MTUS: Final = (256, 512, 1024, 2048, 4096)
#: Devices of a channel: each holds its own registration of the KV memory, and a queue pair for every channel.
MOST_RAILS: Final = 4


class Gid(NamedTuple):
    number: int
    value: str  # eight groups of four hex digits
    kind: GidKind


@dataclass(frozen=True, slots=True)
class Port:
    number: int
    link: Link
    up: bool
    mtu: int  # bytes of payload in a packet
    lid: int = 0
    gids: tuple[Gid, ...] = ()
    max_message: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    ports: tuple[Port, ...]
    max_work: int = 4096  # work requests in one queue
    max_reads: int = 16  # READs in flight on one queue pair
    shut: str = ""  # why it can't be opened; then nothing is known of its ports


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator asks for. Empty: whatever is usable."""

    devices: tuple[str, ...] = ()  # names; "mlx5_0:1" names a port, too
    network: str = ""  # the address must lie in it: "10.8.0.0/16"


@dataclass(frozen=True, slots=True)
class Place:
    """A port of a device, and the address that others reach it by."""

    device: str
    port: int
    link: Link
    family: Family
    gid: str
    gid_index: int
    lid: int
    mtu: int
    max_message: int
    max_work: int
    max_reads: int


class Reach(Protocol):
    """Where a side can be reached: a Place, or what a peer says of its own."""

    @property
    def link(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def gid(self) -> str: ...


def places(devices: Sequence[Device], wanted: Wanted) -> tuple[list[Place], list[str]]:
    """Every usable place, best first, and why each of the others is none."""
    found, refused = [], []
    for device in devices:
        if device.shut:
            refused.append(f"{device.name} can't be opened: {device.shut}")
        for port in device.ports:
            outcome = _place(device, port, wanted)
            if isinstance(outcome, Place):
                found.append(outcome)
            else:
                refused.append(f"{device.name}:{port.number} {outcome}")
    shut = {device.name for device in devices if device.shut}
    for name in wanted.devices:
        here = any(_named(name, device.name, port.number) for device in devices for port in device.ports)
        if not here and name.partition(":")[0] not in shut:
            refused.append(f"{name} is not here")
    found.sort(key=lambda place: (_rank(place, wanted), _PREFERENCE.index(place.family)))
    return found, refused


def objection(mine: Place, link: str, family: str) -> str:
    """Why a peer with that kind of address can't be reached from here; "" when it can."""
    if link != mine.link:
        return f"link layer: {mine.link} here, {link} there"
    if family != mine.family:
        return f"address family: {mine.family} here, {family} there"
    return ""


def rails(mine: Sequence[Place], theirs: Sequence[Reach], named: bool) -> list[tuple[int, int]]:
    """Which place of mine serves which of theirs, each at most once, by their numbers; [] when none can.

    A pair that can't reach each other costs the whole channel, so only those count that evidently lie in one network
    (/24, or /64). Where there is none, one pair is made all the same: networks are routed. Where mine are `named`, an
    operator has said that they belong together, and every pair counts.
    """
    pairs: list[tuple[int, int]] = []
    free = list(range(len(mine)))
    for number, their in enumerate(theirs[:MOST_RAILS]):
        fit = [at for at in free if not objection(mine[at], their.link, their.family)]
        near = [at for at in fit if _one_network(mine[at], their)]
        if near or (named and fit):
            pairs.append(((near or fit)[0], number))
            free.remove(pairs[-1][0])
    if pairs:
        return pairs
    able = (
        (at, n)
        for n, their in enumerate(theirs)
        for at in free
        if not objection(mine[at], their.link, their.family)
    )
    return list(itertools.islice(able, 1))


def common_mtu(mine: int, theirs: int) -> int:
    """The packet size that both can take."""
    return max(size for size in MTUS if size <= min(mine, theirs))


def family_of(gid: str) -> Family:
    address = ipaddress.IPv6Address(gid)
    if address.ipv4_mapped is not None:
        return "ipv4"
    return "link-local" if address.is_link_local else "ipv6"


def _place(device: Device, port: Port, wanted: Wanted) -> Place | str:
    if wanted.devices and not any(_named(name, device.name, port.number) for name in wanted.devices):
        return "was not asked for"
    if not port.up:
        return "has no link: is the cable in, the interface up?"
    if port.mtu < MTUS[0]:
        return f"has a packet size of {port.mtu} bytes, less than any RDMA packet"
    gids = [gid for gid in port.gids if gid.value.replace(":", "").strip("0")]
    if port.link == "infiniband":
        if not port.lid:
            return "has no LID: does a subnet manager run?"
        usable: list[tuple[Gid, Family]] = [(gid, "infiniband") for gid in gids[:1]]
    else:
        routable = [gid for gid in gids if gid.kind == "roce2"]
        if not routable:
            kinds = "RoCE v1 addresses only" if gids else "no address: has its interface an IP address?"
            return f"has {kinds}"
        usable = [(gid, family_of(gid.value)) for gid in routable]
        if wanted.network:
            usable = [(gid, family) for gid, family in usable if _inside(gid.value, wanted.network)]
            if not usable:
                return f"has no address in {wanted.network}"
    if not usable:
        return "has no GID"
    gid, family = min(usable, key=lambda pair: (_PREFERENCE.index(pair[1]), pair[0].number))
    return Place(
        device.name,
        port.number,
        port.link,
        family,
        gid.value,
        gid.number,
        port.lid,
        common_mtu(port.mtu, MTUS[-1]),
        port.max_message,
        device.max_work,
        device.max_reads,
    )


def _one_network(mine: Reach, theirs: Reach) -> bool:
    """As far as it can be seen: fabrics of InfiniBand mostly all have the same prefix, link-local networks too."""
    bits = {"ipv4": 8, "ipv6": 64}.get(mine.family)
    if bits is None:
        return False
    ours, others = (int(ipaddress.IPv6Address(each.gid)) >> bits for each in (mine, theirs))
    return ours == others


def _rank(place: Place, wanted: Wanted) -> int:
    """Where it was asked for."""
    named = (number for number, name in enumerate(wanted.devices) if _named(name, place.device, place.port))
    return next(named, 0)


def _named(wanted: str, device: str, port: int) -> bool:
    name, _, number = wanted.partition(":")
    return name == device and number in ("", str(port))


def _inside(gid: str, network: str) -> bool:
    inside = ipaddress.ip_network(network)
    address = ipaddress.IPv6Address(gid)
    if inside.version == 4:
        return address.ipv4_mapped is not None and address.ipv4_mapped in inside
    return address.ipv4_mapped is None and address in inside
