"""The connections of a channel over verbs: a rail for each pair of devices, and messages over the first of them.

Behind a write, on the same queue pair and thus after it, goes its frame as a message. The TCP connection of the
handshake says, by its end, that the peer has gone; no byte of KV travels on it.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

from runtimes.transport.channel import FRAME, NOTE, PAGE, PAGES, PLACE, ROWS, WRITE, ChannelError, Frame
from runtimes.transport.verbs.ends import Ends
from runtimes.transport.verbs.queue import QueuePair
from runtimes.transport.verbs.work import Piece

_SEND_TIMEOUT_S: Final = 2.0  # of a control message, as on sockets


def watch(ends: Sequence[Ends], lifeline: socket.socket) -> None:
    """Its end ends them all."""
    for end in ends:
        for queue in end.queues:
            queue.watch(lifeline.fileno())


class VerbsControl:
    def __init__(self, ends: Sequence[Ends]) -> None:
        self._ends = ends
        self._queue = ends[0].control

    def send(self, body: bytes) -> None:
        self._queue.send(body, timeout_s=_SEND_TIMEOUT_S)

    def receive(self) -> bytes:
        return _message(self._queue, self._ends)


class Rail:
    """A stream of frames, and what one device knows of the memory at both ends."""

    def __init__(self, end: Ends, ends: Sequence[Ends]) -> None:
        self.end = end
        self._ends = ends

    def write(self, frame: Frame, checksums: bytes, pieces: Sequence[Piece]) -> int:
        """Bytes, then their frame; a ticket of the queue pair."""
        return self.end.bulk.send(FRAME.pack(*frame) + checksums, behind=pieces)

    def tell(self, frame: Frame, body: bytes = b"") -> None:
        self.end.bulk.send(FRAME.pack(*frame) + body)

    def frame(self) -> tuple[Frame, bytes]:
        message = _message(self.end.bulk, self._ends)
        if len(message) < FRAME.size:
            raise ChannelError("protocol", f"a frame of {len(message)} bytes")
        frame = Frame(*FRAME.unpack_from(message))
        body = message[FRAME.size :]
        each = {WRITE: 4, ROWS: PLACE.size, PAGES: PAGE.size}.get(frame.kind, 0)
        expected = frame.size if frame.kind == NOTE else each * frame.blocks
        if len(body) != expected:
            raise ChannelError("protocol", f"{len(body)} bytes behind a frame, instead of {expected}")
        return frame, body


def _message(queue: QueuePair, ends: Sequence[Ends]) -> bytes:
    try:
        got = queue.receive()
    except ChannelError as error:
        if error.reason != "closed":
            raise
        # The peer ends all when one fails: the reason may lie with another.
        known = (each.why() for end in ends for each in end.queues)
        raise next((why for why in known if why is not None and why.reason != "closed"), error) from error
    if isinstance(got, int):
        raise ChannelError("protocol", "an immediate where a message was expected")
    return got
