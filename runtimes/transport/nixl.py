"""The rung `nixl`: NVIDIA's transfer library from the sender's KV memory into the receiver's.

Optional: offered where the package nixl is installed, taken where the other side has the same version. Each side
registers its layers with an agent of its own for each channel, so that the end of the channel is the end of every
write into its memory. Making an agent takes half a second, so a thread does it, and the rung is usable when a
first byte has come across. A write's frame follows on the bulk socket once NIXL calls the write done; its own
notifications would have to be polled for. For the same reason NIXL's progress thread is off (it takes half a
core): the receiver drives its agent while the sender has said that something is coming, and only then.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.carriers import SocketStream
from runtimes.transport.channel import NOTE, RUNG_NAMES, ChannelError, Extent, Frame, Rung, Way
from runtimes.transport.kinds import Kind, Setting
from runtimes.transport.nixl_agent import Agent, joined, text, version

_WAY: Final = RUNG_NAMES.index("nixl")
_PROBE_S: Final = 10.0
_STUCK_S: Final = 10.0  # a write that takes longer
_PAUSE_S: Final = 20e-6  # between two looks: others want the interpreter, too


class _Exposed(msgspec.Struct, frozen=True, tag=True):
    """Receiver -> sender: its agent, and where its layers lie: address and size."""

    agent: bytes
    layers: list[tuple[int, int]]


class _Agreed(msgspec.Struct, frozen=True, tag=True):
    """Sender -> receiver. `why` it can't write there; "": it can."""

    why: str = ""


class _Coming(msgspec.Struct, frozen=True, tag=True):
    """Sender -> receiver: one write more, or the first byte."""


class _Refused(msgspec.Struct, frozen=True, tag=True):
    """Receiver -> sender: why nothing can be written there."""

    why: str


_notes = msgspec.msgpack.Decoder(_Exposed | _Agreed | _Coming | _Refused)


class NixlKind(Kind):
    """Nothing is made before the memory is known: the word is the version."""

    def __init__(self, setting: Setting) -> None:
        self._window = setting.window
        self._way: Nixl | None = None

    @classmethod
    def offered(cls, setting: Setting) -> NixlKind:
        if not version():
            raise ChannelError("device", "the package nixl is not installed")
        return cls(setting)

    @classmethod
    def answered(cls, word: bytes, setting: Setting) -> NixlKind:
        made = cls.offered(setting)
        if word != made.word():
            theirs = word[:32].decode("ascii", "replace")
            raise ChannelError("incompatible", f"version {theirs} there, {version()} here; install the same")
        return made

    def word(self) -> bytes:
        return version().encode()

    def ways(self, bulk: SocketStream) -> Sequence[Way]:
        self._way = Nixl(bulk, self._window)
        return (self._way,)

    def close(self) -> None:
        if self._way is not None:
            self._way.close()


@dataclass(slots=True)
class _Posted:
    frame: Frame
    body: bytes
    handle: Any  # None: a frame without blocks, which waits for its turn


class Nixl(Way):
    rung: Rung = "nixl"
    direct = True

    def __init__(self, bulk: SocketStream, window: int) -> None:
        self.streams = (bulk,)
        self._bulk = bulk
        self._window = window
        self._changed = threading.Condition()
        self._agent: Agent | None = None
        self._sources: Sequence[Extent] | None = None
        self._theirs: _Exposed | None = None
        self._peer = ""
        self._agreed = self._begun = self._closed = False
        self._coming = 0  # at the receiver: what the sender has announced, less what has come
        self._posted: deque[_Posted] = deque()
        self._bytes = 0  # of them
        self._lost: ChannelError | None = None
        self._threads: list[threading.Thread] = []

    @property
    def usable(self) -> bool:
        return self._agreed and not self.why

    @property
    def largest(self) -> int:
        return self._window // 2

    def free(self) -> int:
        return max(0, self._window - self._bytes)

    # --- agreeing

    def expose(self, layers: Sequence[Extent]) -> None:
        self._start("nixl-receive", lambda: self._receive(layers))

    def use(self, layers: Sequence[Extent]) -> None:
        with self._changed:
            self._sources = layers
        self._meet()

    def told(self, lane: int, body: bytes) -> None:
        try:
            note = _notes.decode(body)
        except UNREADABLE as error:
            raise ChannelError("protocol", str(error)) from error
        if isinstance(note, _Exposed):
            with self._changed:
                self._theirs = note
            self._meet()
        elif isinstance(note, _Refused):
            self.why = self.why or note.why
        elif isinstance(note, _Coming):
            with self._changed:
                self._coming += 1
                self._changed.notify_all()
        else:
            self.why, self._agreed = self.why or note.why, not note.why
            self._came()

    def _meet(self) -> None:
        """At the sender, once both sides' memory is known."""
        with self._changed:
            sources, theirs = self._sources, self._theirs
            if sources is None or theirs is None or self._begun:
                return
            self._begun = True
        self._start("nixl-send", lambda: self._send(sources, theirs))

    def _start(self, name: str, run: Callable[[], None]) -> None:
        with self._changed:
            if self._closed:
                return
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
        thread.start()

    def _make_agent(self, layers: Sequence[Extent]) -> Agent | None:
        """None: it can't be had, and `why` says so; or the channel has closed meanwhile."""
        if any(layer.gpu for layer in layers):
            self.why = "the KV memory is a GPU's"
            return None
        try:
            agent = Agent(layers)
        except ChannelError as error:
            self.why = error.detail
            return None
        with self._changed:
            if self._closed:
                agent.close()
                return None
            self._agent = agent
        return agent

    def _note(self, note: _Exposed | _Agreed | _Coming | _Refused) -> None:
        body = msgspec.msgpack.encode(note)
        self._bulk.tell(Frame(NOTE, _WAY, size=len(body)), body)

    # --- receiving: the bytes are there when their frame is

    def _receive(self, layers: Sequence[Extent]) -> None:
        """The thread of the receiver: drives its agent while something is coming."""
        try:
            agent = self._make_agent(layers)
            if agent is None:
                self._note(_Refused(f"at the receiver: {self.why}"))
                return
            self._note(_Exposed(agent.card(), [(layer.address, layer.size) for layer in layers]))
        except ChannelError:
            return  # the channel is lost, and its readers know
        while True:
            with self._changed:
                while not self._coming and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                agent.progress()
            time.sleep(_PAUSE_S)

    def fetch(self, lane: int, frame: Frame, window: memoryview | None) -> None:
        self._came()

    def _came(self) -> None:
        with self._changed:
            self._coming -= 1

    # --- sending

    def _send(self, sources: Sequence[Extent], theirs: _Exposed) -> None:
        """The thread of the sender: meets the peer, then tells of each write that is done, in order."""
        try:
            if len(theirs.layers) != len(sources):
                self.why = f"layers: {len(sources)} here, {len(theirs.layers)} there"
            agent = None if self.why else self._make_agent(sources)
            self._note(_Coming())
            if agent is not None:
                self._probe(agent, theirs)
            self._note(_Agreed(self.why))
            self._agreed = not self.why
            while agent is not None and self._agreed:
                self._tell_next(agent)
        except ChannelError as error:
            self.lose(error)
        except Exception as error:  # whatever NIXL raises
            self.why = self.why or text(error)
            self.lose(ChannelError("unreachable", f"NIXL: {text(error)}"))

    def _probe(self, agent: Agent, theirs: _Exposed) -> None:
        """The first byte, read from the peer's memory: it makes the connection, and shows that there is a way."""
        deadline = time.monotonic() + _PROBE_S
        with self._changed:
            self._peer = agent.meet(theirs.agent)
            here = (ctypes.addressof(agent.scratch), 1)
            handle = agent.post("READ", [here], [(theirs.layers[0][0], 1)], self._peer)
        while time.monotonic() < deadline:
            with self._changed:
                if self._closed or agent.done(handle):
                    return
            time.sleep(_PAUSE_S)
        self.why = f"no byte came across within {_PROBE_S:.0f} s: see UCX_TLS and UCX_NET_DEVICES"

    def _tell_next(self, agent: Agent) -> None:
        with self._changed:
            while not self._posted:
                if self._closed or self._lost is not None:
                    raise ChannelError("closed", "closed on this side")
                self._changed.wait()
            first = self._posted[0]
        deadline = time.monotonic() + _STUCK_S
        while first.handle is not None:
            with self._changed:
                if self._closed:
                    raise ChannelError("closed", "closed on this side")
                if agent.done(first.handle):
                    first.handle.release()
                    break
            if time.monotonic() > deadline:
                raise ChannelError("unreachable", f"a write by NIXL was not done within {_STUCK_S:.0f} s")
            time.sleep(_PAUSE_S)
        self._bulk.tell(first.frame, first.body)
        with self._changed:
            self._posted.popleft()
            self._bytes -= first.frame.size
            self._changed.notify_all()

    def write(self, frame: Frame, checksums: bytes, blocks: Sequence[memoryview]) -> None:
        if self._sources is None or self._theirs is None or not 0 <= frame.layer < len(self._sources):
            raise ValueError(f"no memory for layer {frame.layer} is in use")
        if frame.size > self.largest:
            raise ValueError(f"a write of {frame.size} bytes; at most {self.largest}")
        start, size = self._theirs.layers[frame.layer]
        at = frame.target * (frame.size // frame.blocks)
        if at + frame.size > size:
            raise ValueError(
                f"block {frame.target + frame.blocks - 1} lies beyond the peer's layer {frame.layer}"
            )
        here = joined(blocks)
        there, at = [], start + at
        for _, length in here:
            there.append((at, length))
            at += length
        self._note(_Coming())
        with self._changed:
            while self._bytes + frame.size > self._window and self._lost is None:
                self._changed.wait()
            if self._lost is not None:
                raise self._lost
            if self._agent is None:
                raise ChannelError("closed", "closed on this side")
            try:
                handle = self._agent.post("WRITE", here, there, self._peer)
            except Exception as error:
                raise ChannelError("unreachable", f"NIXL: {text(error)}") from error
            self._append(_Posted(frame, checksums, handle))

    def finish(self, frame: Frame) -> None:
        with self._changed:
            self._append(_Posted(frame, b"", None))

    def flush(self, transfer: int) -> None:
        with self._changed:
            while any(posted.frame.transfer == transfer for posted in self._posted):
                if self._lost is not None:
                    raise self._lost
                self._changed.wait()

    def _append(self, posted: _Posted) -> None:
        self._posted.append(posted)
        self._bytes += posted.frame.size
        self._changed.notify_all()

    # --- ends

    def lose(self, error: ChannelError) -> None:
        with self._changed:
            self._lost = self._lost or error
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody writes here any more when it returns: the agent, and with it every connection of it, is gone."""
        with self._changed:
            self._closed = True
            self._lost = self._lost or ChannelError("closed", "closed on this side")
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()
        with self._changed:
            agent, self._agent = self._agent, None
            self._posted.clear()
        if agent is not None:
            agent.close()
