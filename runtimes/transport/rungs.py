"""Beginning a rung on either side: what the dialler has ready to offer, and what the listener makes of an offer.

The dialler receives blocks, so rings are its own. A rung that can't be had is passed over with the reason; who set
the channel up finds it on the channel. Nothing that was made for a rung outlives the choice of another one.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from runtimes.transport.carriers import SharedMemory, Sockets
from runtimes.transport.channel import Carrier, ChannelError, Rung
from runtimes.transport.handshake import Identity, Offer, Ready
from runtimes.transport.shm import Ring, unlink
from runtimes.transport.verbs import cards
from runtimes.transport.verbs.carrier import Ends, Verbs
from runtimes.transport.verbs.choice import Wanted
from runtimes.transport.verbs.side import Side, differs

#: Same-host memory before RDMA: while blocks are staged, a device only adds its own way to the same two copies.
RUNGS: tuple[Rung, ...] = ("shm", "rdma", "tcp")


@dataclass(eq=False)
class Begun:
    """What one side holds of a rung before the connections stand."""

    window: int
    rung: Rung | Literal["none"] = "none"
    ring: Ring | None = None
    ends: Ends | None = None
    passed: list[str] = field(default_factory=list)

    def carrier(self, control: socket.socket, bulk: socket.socket) -> Carrier:
        """Of the rung that was chosen; what belongs to others is given up. RDMA has no use for `bulk`."""
        ring, ends = self.ring, self.ends
        if self.rung == "rdma" and ends is not None:
            self.ends = None
            self.close()
            return Verbs(control, ends, self.window)
        if self.rung == "shm" and ring is not None:
            self.ring = None
            self.close()
            return SharedMemory(control, bulk, ring)
        self.close()
        return Sockets(control, bulk, self.window)

    def close(self) -> None:
        ring, self.ring = self.ring, None
        ends, self.ends = self.ends, None
        if ring is not None:
            ring.close()
        if ends is not None:
            ends.close()


class Offered(Begun):
    """The dialler's: everything that it offers at once, and the name of the ring for as long as it is needed."""

    def __init__(self, rungs: Sequence[Rung], window: int, rdma: Wanted | None) -> None:
        super().__init__(window)
        self._rungs: list[Rung] = [rung for rung in rungs if rung != "rdma"]
        self._name, self._token = "", b""
        if "shm" in rungs:
            try:
                self.ring, self._name, self._token = Ring.create(window)
            except ChannelError as error:
                self._rungs.remove("shm")
                self.passed.append(f"shm: {error.detail}")
        if "rdma" in rungs:
            try:
                self.ends = Ends(cards.find(rdma)[0], window, receives=True)
                self._rungs.append("rdma")
            except ChannelError as error:
                self.passed.append(f"rdma: {error.detail}")

    def offer(self, pair: str, who: Identity, peer_generation: int) -> Offer:
        return Offer(
            pair,
            "control",
            who,
            peer_generation,
            secrets.token_bytes(16),
            tuple(self._rungs),
            self._name,
            self.window,
            self._token,
            self.window,
            None if self.ends is None else self.ends.side(),
            tuple(self.passed),
        )

    def chosen(self, rung: Rung, word: Ready) -> None:
        """By the listener."""
        self.rung = rung
        self.passed = list(word.passed)
        if rung == "shm" and (self.ring is None or not self.ring.echoed(self._token)):
            raise ChannelError("protocol", "the listener claims shared memory that it did not write to")
        if rung == "rdma":
            if self.ends is None or word.rdma is None:
                raise ChannelError("protocol", "the listener claims RDMA that was not offered")
            self.ends.connect(word.rdma)

    def forget_name(self) -> None:
        if self._name:
            unlink(self._name)


def begin(offer: Offer, rungs: Sequence[Rung], window: int, rdma: Wanted | None) -> Begun:
    """The listener's: the first of its rungs that can be had; "none" if none can."""
    begun = Begun(offer.window or window)
    for rung in rungs:
        if rung not in offer.rungs:
            begun.passed += [why for why in offer.passed if why.startswith(f"{rung}:")]
            continue
        if rung == "shm":
            begun.ring = Ring.attach(offer.ring, offer.ring_size, offer.ring_token) if offer.ring else None
            if begun.ring is None:
                begun.passed.append("shm: the two sides don't see the same memory")
                continue
        elif rung == "rdma":
            try:
                begun.ends = _answering(offer.rdma, begun.window, rdma)
            except ChannelError as error:
                begun.passed.append(f"rdma: {error.detail}")
                continue
        begun.rung = rung
        break
    return begun


def _answering(theirs: Side | None, window: int, rdma: Wanted | None) -> Ends:
    """Our side, connected to theirs."""
    if theirs is None or not theirs.ring_key or theirs.ring_size != window:
        raise ChannelError("protocol", "the offer has no ring of the window's size")
    found = cards.find(rdma)
    place = next((place for place in found if not differs(place, theirs)), None)
    if place is None:
        raise ChannelError("incompatible", differs(found[0], theirs))
    ends = Ends(place, window, receives=False)
    try:
        ends.connect(theirs)
    except BaseException:
        ends.close()
        raise
    return ends
