"""The devices that this process uses: found once asked for, opened for the first user, closed after the last.

All channels on one device share its context and protection domain. Which devices may be used is the operator's
choice: GALAXY_RDMA_DEVICES (names, best first) and GALAXY_RDMA_NETWORK. Says why nothing is usable.
"""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from typing import TYPE_CHECKING

from runtimes.transport.channel import ChannelError, Extent
from runtimes.transport.verbs import gpu, memory
from runtimes.transport.verbs.choice import Device, Place, Wanted, places

if TYPE_CHECKING:
    from runtimes.transport.verbs.memory import Region
    from runtimes.transport.verbs.native import Card

#: How long what is known of devices, their links and addresses is believed: asking takes milliseconds for each.
FRESH_S = 60.0


_Shared = tuple["Card", int, int, bool]


class _Cards:
    """Of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.devices: list[Device] = []
        self.asked = -FRESH_S
        #: By device and port, with the number of its users.
        self.open: dict[tuple[str, int], tuple[Card, int]] = {}
        #: Registered KV memory, by device, address, size and right, with the number of its users.
        self.shared: dict[_Shared, tuple[Region, int]] = {}


_cards = _Cards()


def wanted() -> Wanted:
    """What the environment asks for."""
    names = tuple(
        filter(None, (name.strip() for name in os.environ.get("GALAXY_RDMA_DEVICES", "").split(",")))
    )
    network = os.environ.get("GALAXY_RDMA_NETWORK", "").strip()
    if network:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ChannelError("device", f"GALAXY_RDMA_NETWORK: {error}; write it as 10.8.0.0/16") from error
    return Wanted(names, network)


def find(choice: Wanted | None = None) -> list[Place]:
    """Usable places, best first. Raises ChannelError, which names each device that is none and why."""
    try:
        from runtimes.transport.verbs import native
    except ImportError as error:
        raise ChannelError("device", f"pyverbs can't be loaded ({error}): install python3-pyverbs") from error
    choice = choice or wanted()
    with _cards.lock:
        if time.monotonic() - _cards.asked > FRESH_S:
            try:
                _cards.devices = native.devices()
            except OSError as error:
                raise ChannelError("device", str(error)) from error
            _cards.asked = time.monotonic()
        found, refused = places(_cards.devices, choice)
        if not found:
            _cards.asked = -FRESH_S  # what is put right is seen at once
            raise ChannelError("device", "; ".join(refused) or "no RDMA device")
    return found


def take(place: Place) -> Card:
    """The open device; to be given back."""
    from runtimes.transport.verbs.native import Card

    key = place.device, place.port
    with _cards.lock:
        card, users = _cards.open.get(key) or (Card(place), 0)
        _cards.open[key] = card, users + 1
        return card


def give_back(card: Card) -> None:
    key = card.place.device, card.place.port
    with _cards.lock:
        known, users = _cards.open[key]
        assert known is card
        if users > 1:
            _cards.open[key] = card, users - 1
            return
        del _cards.open[key]
        card.close()


def share(card: Card, extent: Extent, *, remote: bool) -> Region:
    """This memory as the device knows it, registered for the first user. `remote`: whether peers may write it."""
    key = card, extent.address, extent.size, remote
    if key not in _cards.shared and not extent.gpu:  # a large cache: not while others wait for the lock
        memory.populate(extent.address, extent.size)
    with _cards.lock:
        region, users = _cards.shared.get(key) or (_register(card, extent, remote), 0)
        _cards.shared[key] = region, users + 1
        return region


def _register(card: Card, extent: Extent, remote: bool) -> Region:
    if extent.gpu:
        return gpu.register(card, extent, remote=remote)
    return memory.register_at(card, extent.address, extent.size, extent.owner, remote=remote)


def unshare(card: Card, region: Region) -> None:
    """The last user's ends the registration."""
    with _cards.lock:
        key, users = next((key, users) for key, (known, users) in _cards.shared.items() if known is region)
        assert key[0] is card
        if users > 1:
            _cards.shared[key] = region, users - 1
            return
        del _cards.shared[key]
        region.close()
