"""One side of a pair of devices: device taken, ring registered, queue pairs made, and connected to the peer's."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Final

from runtimes.transport.channel import ChannelError, Port
from runtimes.transport.verbs import cards, memory
from runtimes.transport.verbs.choice import Place, common_mtu
from runtimes.transport.verbs.memory import Region
from runtimes.transport.verbs.queue import QueuePair
from runtimes.transport.verbs.side import VERSION, Side, differs

#: Every page of buffers costs time to register when a channel is set up. Few control messages are under way at once,
#: and a frame is short: 1 KiB holds the checksums of 248 blocks.
_CONTROL_DEPTH: Final = 32
_BULK_BUFFER: Final = 1024
_BULK_BUFFERS: Final = 128


class Ends:
    """`size` of the ring, 0: none. `control`: whether messages go here, too: on one device of a channel.

    `receives`: whether the peer may write into the ring; `readable`: and read it.
    """

    def __init__(
        self, place: Place, size: int, *, receives: bool, control: bool = True, readable: bool = False
    ) -> None:
        self._undo: list[Callable[[], None]] = []
        self._ring: Region | None = None
        self._control: QueuePair | None = None
        try:
            self.card = card = cards.take(place)
            self._undo.append(lambda: cards.give_back(card))
            if size:
                self._ring = memory.register(card, mmap.mmap(-1, size), remote=receives, readable=readable)
                self._undo.append(self._ring.close)
            if control:
                self._control = QueuePair(card, depth=_CONTROL_DEPTH)
                self._undo.append(self._control.close)
            self.bulk = QueuePair(card, _BULK_BUFFER, _BULK_BUFFERS)
            self._undo.append(self.bulk.close)
        except BaseException:
            self.close()
            raise
        self.place, self.size = place, size
        self._receives = receives
        self.remote_ring = self.remote_key = 0
        self.mtu = place.mtu  # until both sides have agreed on one

    @property
    def port(self) -> Port:
        return Port(f"{self.place.device}:{self.place.port}", self.place.gid, self.mtu)

    @property
    def ring(self) -> Region:
        if self._ring is None:
            raise ChannelError("protocol", f"no ring on {self.place.device}")
        return self._ring

    @property
    def control(self) -> QueuePair:
        if self._control is None:
            raise ChannelError("protocol", f"no queue pair for messages on {self.place.device}")
        return self._control

    @property
    def queues(self) -> tuple[QueuePair, ...]:
        return (self.bulk,) if self._control is None else (self._control, self.bulk)

    def without_control(self) -> None:
        """Messages go elsewhere."""
        control, self._control = self._control, None
        if control is not None:
            control.close()

    def side(self) -> Side:
        place, ring = self.place, self._ring
        return Side(
            VERSION,
            place.device,
            place.link,
            place.family,
            place.gid,
            place.lid,
            place.mtu,
            place.max_reads,
            (0, 0) if self._control is None else (self._control.number, self._control.first_packet),
            (self.bulk.number, self.bulk.first_packet),
            *((ring.address, ring.key.remote, self.size) if ring is not None and self._receives else ()),
        )

    def connect(self, theirs: Side) -> None:
        why = differs(self.place, theirs)
        if why:
            raise ChannelError("incompatible", why)
        self.remote_ring, self.remote_key = theirs.ring, theirs.ring_key
        mtu = self.mtu = common_mtu(self.place.mtu, theirs.mtu)
        reads = min(self.place.max_reads, theirs.reads)
        for queue, (number, packet) in zip(
            reversed(self.queues), (theirs.bulk, theirs.control), strict=False
        ):
            queue.connect(number, packet, theirs.gid, theirs.lid, mtu, reads)

    def close(self) -> None:
        while self._undo:
            self._undo.pop()()
