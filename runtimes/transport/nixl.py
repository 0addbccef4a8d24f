"""The rung `nixl`: NVIDIA's transfer library from the sender's KV memory into the receiver's. The only file that
imports it.

Optional: offered where the package nixl is installed, taken where the other side has the same version. Each side
registers its layers with an agent of its own for each channel, so that the end of the channel is the end of every
write into its memory. Making an agent takes half a second, so a thread does it, and the rung is usable when a
first byte has come across. A write's frame follows on the bulk socket once NIXL calls the write done; its own
notifications would have to be polled for. For the same reason NIXL's progress thread is off (it takes half a
core): the receiver drives its agent while the sender has said that something is coming, and only then.

What UCX finds between the two sides is its own affair (UCX_TLS, UCX_NET_DEVICES), but for ways that a receiver
could not put an end to: the kernel's from process to process. Host memory only. The libraries that come with nixl
1.5 crash when a process ends by `exit`; ours end by `_exit`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.carriers import SocketStream
from runtimes.transport.channel import NOTE, RUNG_NAMES, ChannelError, Extent, Frame, Rung, Way
from runtimes.transport.kinds import Kind, Setting

_WAY: Final = RUNG_NAMES.index("nixl")
_UNENDING: Final = ("cma", "knem", "xpmem")
#: UCX's names for all of shared memory.
_SHARED: Final = {"sm": ("posix", "sysv"), "shm": ("posix", "sysv"), "mm": ("posix", "sysv")}
_environment: Final = threading.Lock()
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


@functools.cache
def version() -> str:
    """Of the package; "" where it is not installed."""
    try:
        return importlib.metadata.version("nixl")
    except importlib.metadata.PackageNotFoundError:
        return ""


def allowed_ways(given: str) -> str:
    """UCX_TLS without the ways by which the kernel lets a process write into another: their owner can't end those."""
    if not given or given == "all":
        return "^" + ",".join(_UNENDING)
    words = [word.strip() for word in given.removeprefix("^").split(",")]
    if given.startswith("^"):
        return "^" + ",".join(dict.fromkeys((*words, *_UNENDING)))
    kept = [each for word in words for each in _SHARED.get(word, (word,)) if each not in _UNENDING]
    return ",".join(dict.fromkeys(kept))


@contextlib.contextmanager
def _ucx_ways(ways: str) -> Iterator[None]:
    """UCX reads its environment when an agent is made."""
    with _environment:
        before = os.environ.get("UCX_TLS")
        os.environ["UCX_TLS"] = ways
        try:
            yield
        finally:
            if before is None:
                del os.environ["UCX_TLS"]
            else:
                os.environ["UCX_TLS"] = before


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


class _Agent:
    """NIXL's agent with registered memory. For one thread at a time."""

    def __init__(self, layers: Sequence[Extent]) -> None:
        """Raises ChannelError."""
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        try:
            from nixl import _api as nixl  # type: ignore[import-not-found,unused-ignore]

            setting = nixl.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            with _ucx_ways(allowed_ways(os.environ.get("UCX_TLS", ""))):
                self._nixl: Any = nixl.nixl_agent(f"galaxy-{uuid.uuid4().hex}", setting)
        except Exception as error:  # whatever its libraries raise
            raise ChannelError("device", f"NIXL does not start: {_text(error)}") from error
        try:
            #: One byte for the first read.
            self.scratch = ctypes.create_string_buffer(64)
            regions = [(layer.address, layer.size, 0, "") for layer in layers]
            regions.append((ctypes.addressof(self.scratch), len(self.scratch), 0, ""))
            # To give the same memory back twice crashes it.
            self._memory = self._nixl.register_memory(list(dict.fromkeys(regions)), "DRAM", ["UCX"])
        except Exception as error:
            raise ChannelError("memory", f"NIXL can't register the KV memory: {_text(error)}") from error

    def card(self) -> bytes:
        return bytes(self._nixl.get_agent_metadata())

    def meet(self, card: bytes) -> str:
        name = self._nixl.add_remote_agent(card)
        return name.decode() if isinstance(name, bytes) else str(name)

    def post(
        self, kind: str, here: Sequence[tuple[int, int]], there: Sequence[tuple[int, int]], peer: str
    ) -> Any:
        """A transfer of pieces of memory, each an address and a size; it has begun."""
        mine, theirs = (
            self._nixl.get_xfer_descs([(address, size, 0) for address, size in pieces], "DRAM")
            for pieces in (here, there)
        )
        handle = self._nixl.initialize_xfer(kind, mine, theirs, peer)
        self._nixl.transfer(handle)
        return handle

    def done(self, handle: Any) -> bool:
        state = self._nixl.check_xfer_state(handle)
        if state == "ERR":
            raise ChannelError("unreachable", "NIXL could not write: see its log for the reason")
        return bool(state == "DONE")

    def progress(self) -> None:
        self._nixl.get_new_notifs()

    def close(self) -> None:
        try:
            with contextlib.suppress(Exception):  # its destructor does what is left
                self._nixl.deregister_memory(self._memory)
        finally:
            self._nixl = None


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
        self._agent: _Agent | None = None
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

    def _make_agent(self, layers: Sequence[Extent]) -> _Agent | None:
        """None: it can't be had, and `why` says so; or the channel has closed meanwhile."""
        if any(layer.gpu for layer in layers):
            self.why = "the KV memory is a GPU's"
            return None
        try:
            agent = _Agent(layers)
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
            self.why = self.why or _text(error)
            self.lose(ChannelError("unreachable", f"NIXL: {_text(error)}"))

    def _probe(self, agent: _Agent, theirs: _Exposed) -> None:
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

    def _tell_next(self, agent: _Agent) -> None:
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
        here = _joined(blocks)
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
                raise ChannelError("unreachable", f"NIXL: {_text(error)}") from error
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


def _joined(blocks: Sequence[memoryview]) -> list[tuple[int, int]]:
    """Address and size of the blocks' memory, neighbours as one."""
    out: list[tuple[int, int]] = []
    for block in blocks:
        try:
            address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        except TypeError as error:
            raise ValueError("blocks that are written must lie in the memory that is in use") from error
        if out and sum(out[-1]) == address:
            out[-1] = (out[-1][0], out[-1][1] + len(block))
        else:
            out.append((address, len(block)))
    return out


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:300]
