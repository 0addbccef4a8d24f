"""What travels on the two sockets of a channel: messages, frames, and blocks with them or beside them in a ring."""

from __future__ import annotations

import mmap
import socket
import threading
from collections.abc import Sequence

from runtimes.transport import sockets
from runtimes.transport.channel import (
    FRAME,
    MAX_BLOCKS,
    MAX_NOTE,
    NOTE,
    PLACE,
    ROWS,
    WRITE,
    ChannelError,
    Frame,
    Rung,
)
from runtimes.transport.credit import Credit, give_back
from runtimes.transport.ringed import Ringed
from runtimes.transport.shm import Ring

_SCRATCH = 1 << 20
SEND_TIMEOUT_S = 2.0  # of a control message: senders include event loops, which a stopped peer must not stop
STALL_S = 10.0  # of a stream that takes not a byte: engines wait for blocks that are being sent


class SocketControl:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        sockets.limit_sends(connection, SEND_TIMEOUT_S)

    def send(self, body: bytes) -> None:
        with self._lock:
            sockets.write_message(self._socket, body)

    def receive(self) -> bytes:
        return sockets.read_message(self._socket)


class SocketStream:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._lock = threading.Lock()
        sockets.limit_sends(connection, STALL_S)

    def tell(self, frame: Frame, body: bytes = b"", blocks: Sequence[memoryview] = ()) -> None:
        with self._lock:
            sockets.write(self.socket, [FRAME.pack(*frame), body, *blocks])

    def frame(self) -> tuple[Frame, bytes]:
        frame = Frame(*FRAME.unpack(sockets.read(self.socket, FRAME.size)))
        if frame.kind == NOTE:
            if frame.size > MAX_NOTE:
                raise ChannelError("protocol", f"a note of {frame.size} bytes")
            return frame, bytes(sockets.read(self.socket, frame.size))
        if frame.kind not in (WRITE, ROWS):
            return frame, b""
        if frame.blocks > MAX_BLOCKS:
            raise ChannelError("protocol", f"a write of {frame.blocks} blocks")
        each = 4 if frame.kind == WRITE else PLACE.size
        return frame, bytes(sockets.read(self.socket, each * frame.blocks))


class OnBulk(Ringed):
    """Frames on the bulk socket, with so many bytes under way at most."""

    def __init__(self, stream: SocketStream, size: int) -> None:
        self.streams = (stream,)
        self._stream = stream
        self._credit = Credit(size)

    @property
    def largest(self) -> int:
        return self._credit.largest

    def free(self) -> int:
        return self._credit.free()

    def reserve(self, size: int) -> tuple[int, int]:
        return 0, self._credit.reserve(size)

    def credited(self, lane: int, size: int) -> None:
        self._credit.give_back(size)

    def lose(self, error: ChannelError) -> None:
        self._credit.lose(error)


class Tcp(OnBulk):
    """Blocks behind their frame: from where they lie to where they belong, or between rings that each side has."""

    rung: Rung = "tcp"

    def __init__(self, stream: SocketStream, size: int) -> None:
        super().__init__(stream, size)
        self._ring: memoryview | None = None

    def view(self, lane: int) -> memoryview:
        if self._ring is None:
            self._ring = memoryview(mmap.mmap(-1, self._credit.size))
        return self._ring

    def post(self, lane: int, frame: Frame, body: bytes) -> None:
        blocks = self.view(lane)[frame.offset : frame.offset + frame.size]
        self._stream.tell(frame, body, (blocks,))

    def arrive(self, lane: int, frame: Frame) -> None:
        super().arrive(lane, frame)
        sockets.read_into(self._stream.socket, self.view(lane)[frame.offset : frame.offset + frame.size])

    def write(self, frame: Frame, checksums: bytes, blocks: Sequence[memoryview]) -> None:
        self._credit.reserve(frame.size)
        self._stream.tell(frame, checksums, blocks)

    def fetch_rows(self, lane: int, frame: Frame, windows: Sequence[memoryview | None]) -> None:
        for window in windows:
            if window is not None:
                sockets.read_into(self._stream.socket, window)
            else:
                self._throw_away(frame.size // len(windows))
        give_back(self._stream, frame)

    def _throw_away(self, size: int) -> None:
        scratch = memoryview(bytearray(min(size, _SCRATCH)))
        while size > 0:
            piece = scratch[: min(size, len(scratch))]
            sockets.read_into(self._stream.socket, piece)
            size -= len(piece)


class SharedMemory(OnBulk):
    """Blocks in memory that both sides see, of which this side writes `own`."""

    rung: Rung = "shm"

    def __init__(self, stream: SocketStream, ring: Ring, own: range) -> None:
        super().__init__(stream, len(own))
        self._ring = ring
        self._own = own

    def reserve(self, size: int) -> tuple[int, int]:
        lane, offset = super().reserve(size)
        return lane, self._own.start + offset

    def view(self, lane: int) -> memoryview:
        return self._ring.view

    def post(self, lane: int, frame: Frame, body: bytes) -> None:
        self._stream.tell(frame, body)
