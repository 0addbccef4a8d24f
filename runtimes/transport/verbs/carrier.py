"""The rung over RDMA: two queue pairs a channel, and a ring at whoever receives blocks.

The receiver's ring is registered, and its key is given to the sender, which keeps a ring of its own of the same size
and writes from the same place in it. So a source may change as soon as it is copied, nobody writes beside the ring,
and the credit for a piece of it also says that its WRITE is over. Behind a write, on the same queue pair and thus
after it, goes its frame as a message. The TCP connection of the handshake stays open and says, by its end, that the
peer has gone; no byte travels on it.
"""

from __future__ import annotations

import mmap
import socket
from collections.abc import Callable, Sequence
from typing import Final

from runtimes.transport import sockets
from runtimes.transport.channel import FRAME, WRITE, ChannelError, Frame, Rung
from runtimes.transport.shm import copy_in, copy_out
from runtimes.transport.verbs import cards, memory
from runtimes.transport.verbs.choice import Place, common_mtu
from runtimes.transport.verbs.queue import QueuePair
from runtimes.transport.verbs.side import VERSION, Side, differs

_SEND_TIMEOUT_S: Final = 2.0  # of a control message, as on sockets
_SETTLE_S: Final = 0.5
#: Every page of buffers costs time to register when a channel is set up. Few control messages are under way at once,
#: and a frame is short: 1 KiB holds the checksums of 248 blocks.
_CONTROL_DEPTH: Final = 32
_BULK_BUFFER: Final = 1024
_BULK_BUFFERS: Final = 128


class Ends:
    """One side of a channel to be: device taken, ring registered, queue pairs made."""

    def __init__(self, place: Place, size: int, *, receives: bool) -> None:
        self._undo: list[Callable[[], None]] = []
        try:
            card = cards.take(place)
            self._undo.append(lambda: cards.give_back(card))
            buffer = mmap.mmap(-1, size)
            self.ring = memory.register(card, buffer, remote=receives)
            self._undo.append(self.ring.close)
            self.control = QueuePair(card, depth=_CONTROL_DEPTH)
            self._undo.append(self.control.close)
            self.bulk = QueuePair(card, _BULK_BUFFER, _BULK_BUFFERS)
            self._undo.append(self.bulk.close)
        except BaseException:
            self.close()
            raise
        self.place, self._receives, self._size = place, receives, size
        self.remote_ring = self.remote_key = 0

    def side(self) -> Side:
        place, ring = self.place, self.ring
        return Side(
            VERSION,
            place.device,
            place.link,
            place.family,
            place.gid,
            place.lid,
            place.mtu,
            place.max_reads,
            (self.control.number, self.control.first_packet),
            (self.bulk.number, self.bulk.first_packet),
            *((ring.address, ring.key.remote, self._size) if self._receives else ()),
        )

    def connect(self, theirs: Side) -> None:
        why = differs(self.place, theirs)
        if why:
            raise ChannelError("incompatible", why)
        self.remote_ring, self.remote_key = theirs.ring, theirs.ring_key
        mtu = common_mtu(self.place.mtu, theirs.mtu)
        reads = min(self.place.max_reads, theirs.reads)
        for queue, (number, packet) in ((self.control, theirs.control), (self.bulk, theirs.bulk)):
            queue.connect(number, packet, theirs.gid, theirs.lid, mtu, reads)

    def close(self) -> None:
        while self._undo:
            self._undo.pop()()


class Verbs:
    """The carrier. Takes over what `ends` holds, and the connection of the handshake."""

    rung: Rung = "rdma"

    def __init__(self, lifeline: socket.socket, ends: Ends, size: int) -> None:
        self.size = size
        self._lifeline = lifeline
        self._ends = ends
        for queue in (ends.control, ends.bulk):
            queue.watch(lifeline.fileno())

    def send(self, body: bytes) -> None:
        self._ends.control.send(body, timeout_s=_SEND_TIMEOUT_S)

    def receive(self) -> bytes:
        return self._message(self._ends.control)

    def put(self, head: bytes, checksums: bytes, blocks: Sequence[memoryview], offset: int) -> None:
        ends = self._ends
        if not ends.remote_ring or ends.ring.view is None:
            raise ChannelError("protocol", "blocks go to the side that dialled")
        copy_in(ends.ring.view, blocks, offset)
        size = sum(len(block) for block in blocks)
        piece = ends.ring.piece(offset, size, ends.remote_ring + offset, ends.remote_key)
        ends.bulk.send(head + checksums, behind=(piece,))

    def tell(self, head: bytes) -> None:
        self._ends.bulk.send(head)

    def frame(self) -> tuple[Frame, bytes]:
        message = self._message(self._ends.bulk)
        if len(message) < FRAME.size:
            raise ChannelError("protocol", f"a frame of {len(message)} bytes")
        frame = Frame(*FRAME.unpack_from(message))
        checksums = message[FRAME.size :]
        if len(checksums) != (4 * frame.blocks if frame.kind == WRITE else 0):
            raise ChannelError("protocol", f"{len(checksums)} bytes of checksums for {frame.blocks} blocks")
        return frame, checksums

    def fetch(self, frame: Frame, window: memoryview | None) -> None:
        if self._ends.ring.view is None:
            raise ChannelError("closed", "closed on this side")
        copy_out(self._ends.ring.view, frame.offset, frame.size, window)

    def end(self) -> None:
        sockets.stop_reading(self._lifeline)

    def close(self) -> None:
        """What was sent before the end still arrives; the peer hears of the end behind it."""
        for queue in (self._ends.control, self._ends.bulk):
            queue.settle(_SETTLE_S)
        sockets.close(self._lifeline)
        self._ends.close()

    def _message(self, queue: QueuePair) -> bytes:
        try:
            got = queue.receive()
        except ChannelError as error:
            if error.reason != "closed":
                raise
            # The peer ends both when one fails: the reason may lie with the other.
            known = (each.why() for each in (self._ends.control, self._ends.bulk))
            raise next((why for why in known if why is not None and why.reason != "closed"), error) from error
        if isinstance(got, int):
            raise ChannelError("protocol", "an immediate where a message was expected")
        return got
