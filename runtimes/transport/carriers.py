"""The rungs whose frames travel on two sockets: TCP, and shared memory with only the blocks beside them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from runtimes.transport import sockets
from runtimes.transport.channel import FRAME, MAX_BLOCKS, WRITE, ChannelError, Frame, Rung
from runtimes.transport.shm import Ring, copy_in, copy_out

_SCRATCH = 1 << 20
SEND_TIMEOUT_S = 2.0  # of a control message: senders include event loops, which a stopped peer must not stop


class Sockets:
    """Everything on the sockets."""

    rung: Rung = "tcp"

    def __init__(self, control: socket.socket, bulk: socket.socket, size: int) -> None:
        self.size = size
        self._control = control
        self._bulk = bulk
        self._control_lock = threading.Lock()
        self._bulk_lock = threading.Lock()
        sockets.limit_sends(control, SEND_TIMEOUT_S)

    def send(self, body: bytes) -> None:
        with self._control_lock:
            sockets.write_message(self._control, body)

    def receive(self) -> bytes:
        return sockets.read_message(self._control)

    def put(self, head: bytes, checksums: bytes, blocks: Sequence[memoryview], offset: int) -> None:
        with self._bulk_lock:
            sockets.write(self._bulk, [head, checksums, *blocks])

    def tell(self, head: bytes) -> None:
        with self._bulk_lock:
            sockets.write(self._bulk, [head])

    def frame(self) -> tuple[Frame, bytes]:
        frame = Frame(*FRAME.unpack(sockets.read(self._bulk, FRAME.size)))
        if frame.kind != WRITE:
            return frame, b""
        if frame.blocks > MAX_BLOCKS:
            raise ChannelError("protocol", f"a write of {frame.blocks} blocks")
        return frame, bytes(sockets.read(self._bulk, 4 * frame.blocks))

    def fetch(self, frame: Frame, window: memoryview | None) -> None:
        if window is not None:
            sockets.read_into(self._bulk, window)
            return
        size = frame.size
        scratch = memoryview(bytearray(min(size, _SCRATCH)))
        while size > 0:
            piece = scratch[: min(size, len(scratch))]
            sockets.read_into(self._bulk, piece)
            size -= len(piece)

    def end(self) -> None:
        sockets.close(self._control)
        sockets.close(self._bulk)

    def close(self) -> None:
        return


class SharedMemory(Sockets):
    """Blocks in a ring that both sides see."""

    rung: Rung = "shm"

    def __init__(self, control: socket.socket, bulk: socket.socket, ring: Ring) -> None:
        super().__init__(control, bulk, ring.size)
        self._ring = ring

    def put(self, head: bytes, checksums: bytes, blocks: Sequence[memoryview], offset: int) -> None:
        copy_in(self._ring.view, blocks, offset)
        with self._bulk_lock:
            sockets.write(self._bulk, [head, checksums])

    def fetch(self, frame: Frame, window: memoryview | None) -> None:
        copy_out(self._ring.view, frame.offset, frame.size, window)

    def close(self) -> None:
        self._ring.close()
