"""Channels with the rung nixl, both sides in this process or the sender in another one."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from queue import SimpleQueue

from runtimes.transport.channel import ChannelError, Extent, Frame, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel

KEY = b"k" * 32
BLOCK = 64 << 10
WAIT_S = 60.0


class Ear:
    """Both Receiver and Landing; everything that happens goes into a queue."""

    def __init__(self, blocks: int = 64) -> None:
        self.memory = memoryview(mmap.mmap(-1, blocks * BLOCK))
        self.happened: SimpleQueue[tuple[object, ...]] = SimpleQueue()

    def message(self, channel: object, body: bytes) -> None:
        self.happened.put(("message", body))

    def lost(self, channel: object, error: ChannelError) -> None:
        self.happened.put(("lost", error.reason))

    def window(self, frame: Frame) -> memoryview | None:
        return self.memory[frame.target * BLOCK : (frame.target + frame.blocks) * BLOCK]

    def landed(self, frame: Frame, broken: list[int]) -> None:
        self.happened.put(("landed", frame.target, frame.blocks, broken))

    def done(self, transfer: int, blocks: int) -> None:
        self.happened.put(("done", transfer, blocks))

    def next(self) -> tuple[object, ...]:
        return self.happened.get(timeout=WAIT_S)


class Told(Ear):
    """Tells the sender of what has landed: only then may it write there again."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def landed(self, frame: Frame, broken: list[int]) -> None:
        super().landed(frame, broken)
        with contextlib.suppress(ChannelError):
            self._channel.send(b"landed")


def extent(memory: memoryview) -> Extent:
    return Extent(ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory), owner=memory)


def prefill(rungs: tuple[Rung, ...] = ("nixl", "tcp")) -> tuple[Listener, SimpleQueue[Channel]]:
    accepted: SimpleQueue[Channel] = SimpleQueue()
    return Listener(KEY, lambda: Identity("p", 7, Layout()), accepted.put, rungs), accepted


def decode(addr: str, rungs: tuple[Rung, ...] = ("nixl",), window: int = 4 << 20) -> Channel:
    return dial(addr, KEY, Identity("d", 3, Layout()), rungs=rungs, window=window)


class Pair:
    def __init__(self, window: int = 4 << 20) -> None:
        self.listener, accepted = prefill()
        self.decode = decode(self.listener.addr, window=window)
        self.prefill = accepted.get(timeout=WAIT_S)
        self.at_decode, self.at_prefill = Ear(), Ear()
        self.decode.start(self.at_decode, self.at_decode)
        self.prefill.start(self.at_prefill, None)
        self.prefill.use([extent(self.at_prefill.memory)])
        self.decode.expose([extent(self.at_decode.memory)])
        until(lambda: self.decode.rungs == self.prefill.rungs == ("nixl",))

    def fill(self, first: int, count: int) -> list[memoryview]:
        part = self.at_prefill.memory[first * BLOCK : (first + count) * BLOCK]
        part[:] = os.urandom(len(part))
        return [part[at : at + BLOCK] for at in range(0, len(part), BLOCK)]

    def close(self) -> None:
        self.decode.close()
        self.prefill.close()
        self.listener.close()


def until(condition: Callable[[], bool]) -> None:
    """Other threads bring it about."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Sender:
    """A prefill side in a process of its own, which writes blocks until it is killed (see peer.py)."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.transport.nixl.peer"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.addr = self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
