"""The rung `ipc`: from a GPU into a ring on the receiver's GPU, which CUDA IPC lets a process of the same host reach.

When its cache is there, the receiver tells the handle of its ring and a token in it; the sender opens it, reads the
token and answers: from then on the rung is usable. Where that fails (another host, namespaces, a GPU that isn't seen)
the reason is the answer. Rings are never freed: a peer that is lost, or was stopped and goes on, may still be
writing. The next channel gets them with another token, which goes into the checksums of its pieces: what such a peer
puts in their place, itself whole, is broken.
"""

from __future__ import annotations

import ctypes
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.carriers import OnBulk, SocketStream
from runtimes.transport.channel import NOTE, RUNG_NAMES, ChannelError, Extent, Frame, Rung, Way
from runtimes.transport.cuda.blocks import PagedBlocks
from runtimes.transport.cuda.driver import CudaError, Device, present
from runtimes.transport.kinds import Kind, Setting
from runtimes.transport.ringed import Room

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_TOKEN: Final = 16
_spare: dict[tuple[int, int], list[int]] = {}  # rings that nobody uses, by GPU and size
_lock: Final = threading.Lock()


class _Offered(msgspec.Struct, frozen=True, tag=True):
    """Receiver -> sender."""

    boot: str
    handle: bytes
    token: bytes


class _Agreed(msgspec.Struct, frozen=True, tag=True):
    """Sender -> receiver. `why` it can't write there; "": it can."""

    why: str = ""


_notes = msgspec.msgpack.Decoder(_Offered | _Agreed)


class Ipc(OnBulk):
    rung: Rung = "ipc"
    on_gpu = True

    def __init__(self, stream: SocketStream, size: int) -> None:
        super().__init__(stream, size)
        self._agreed = self._closed = False
        self._state = threading.Lock()
        self._mine: Device | None = None  # on which our cache is
        self._ring = 0  # ours, at the receiver
        self._theirs = 0  # as we reach it, at the sender
        self._offered: _Offered | None = None

    @property
    def usable(self) -> bool:
        return self._agreed and not self.why

    def view(self, lane: int) -> memoryview:
        raise ChannelError("protocol", "blocks of the host on the rung ipc")

    def room(self, lane: int) -> Room:
        return Room(self._ring or self._theirs, self._credit.size, on_gpu=True)

    def arrive(self, lane: int, frame: Frame) -> None:
        if not self._ring or frame.offset + frame.size > self._credit.size:
            raise ChannelError("protocol", "a write beyond the ring")

    def post(self, lane: int, frame: Frame, body: bytes) -> None:
        self._stream.tell(frame, body)

    # --- agreeing

    def expose(self, layers: Sequence[Extent]) -> None:
        device = _device(layers)
        if device is None:
            return
        token = secrets.token_bytes(_TOKEN)
        try:
            with self._state:
                if self._closed:
                    return
                self._mine, self._ring = device, _take_ring(device, self._credit.size)
                self.word = token
            _copy(device, self._ring, token)
            handle = device.export(self._ring)
        except CudaError as error:
            self.why = f"no ring on the GPU: {error}"
            return
        self._note(_Offered(_BOOT.read_text().strip(), handle, token))

    def use(self, layers: Sequence[Extent]) -> None:
        with self._state:
            self._mine = _device(layers)
        self._agree()

    def told(self, lane: int, body: bytes) -> None:
        try:
            note: _Offered | _Agreed = _notes.decode(body)
        except UNREADABLE as error:
            raise ChannelError("protocol", str(error)) from error
        if isinstance(note, _Agreed):
            self.why, self._agreed = self.why or note.why, not note.why
            return
        with self._state:
            self._offered = note
        self._agree()

    def _agree(self) -> None:
        """At the sender, once both sides' caches are there."""
        with self._state:
            device, offered = self._mine, self._offered
            if device is None or offered is None or self._theirs or self.why:
                return
            self.why = self._open(device, offered)
            self._agreed = not self.why
        self._note(_Agreed(self.why))

    def _open(self, device: Device, offered: _Offered) -> str:
        """Why not."""
        if offered.boot != _BOOT.read_text().strip():
            return "the two sides are on different hosts"
        try:
            device.enter()
            self._theirs = device.open(offered.handle)
            if _copy(device, self._theirs) == offered.token:
                self.word = offered.token
                return ""
            return "what was opened is not the peer's ring"
        except (CudaError, ValueError) as error:
            return f"{error}: both processes must see both GPUs, and share the PID and IPC namespaces"

    def _note(self, note: _Offered | _Agreed) -> None:
        body = msgspec.msgpack.encode(note)
        self._stream.tell(Frame(NOTE, RUNG_NAMES.index(self.rung), size=len(body)), body)

    def close(self) -> None:
        """When nothing is under way on this side."""
        with self._state:
            self._closed = True
            device, ring, theirs = self._mine, self._ring, self._theirs
            self._ring = self._theirs = 0
        if device is None:
            return
        if theirs:
            device.enter()
            device.close(theirs)
        if ring:
            with _lock:
                _spare.setdefault((device.ordinal, self._credit.size), []).append(ring)


class IpcKind(Kind):
    """Nothing is agreed on before the caches are there."""

    def __init__(self, setting: Setting) -> None:
        if not present():
            raise ChannelError("device", "there is no NVIDIA driver here")
        self._window = setting.window
        self._way: Ipc | None = None

    def ways(self, bulk: SocketStream) -> Sequence[Way]:
        self._way = Ipc(bulk, 2 * self._window)  # for larger pieces than others': the link is faster
        return (self._way,)

    def close(self) -> None:
        if self._way is not None:
            self._way.close()


def _device(layers: Sequence[Extent]) -> Device | None:
    """Of a cache on a GPU."""
    owner = layers[0].owner if layers else None
    return owner.device if isinstance(owner, PagedBlocks) else None


def _take_ring(device: Device, size: int) -> int:
    device.enter()
    with _lock:
        spare = _spare.get((device.ordinal, size))
        if spare:
            return spare.pop()
    return device.allocate(size)


def _copy(device: Device, address: int, data: bytes = b"") -> bytes:
    """To there; nothing: what is there."""
    buffer = (ctypes.c_char * _TOKEN).from_buffer_copy(data or bytes(_TOKEN))
    here = ctypes.addressof(buffer)
    target, source = (address, here) if data else (here, address)
    device.enter()
    stream = device.stream()
    device.copy(target, source, _TOKEN, stream)
    device.drain(stream)
    device.destroy([stream], [])
    return buffer.raw
