"""Channels with the rung nixl, both sides in this process or the sender in another one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from queue import SimpleQueue

from runtimes.transport.channel import ChannelError, Frame, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from tests.support.channel_ends import BLOCK, KEY, WAIT_S, Ear, extent, until


class Told(Ear):
    """Tells the sender of what has landed: only then may it write there again."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def landed(self, frame: Frame, broken: list[int]) -> None:
        super().landed(frame, broken)
        with contextlib.suppress(ChannelError):
            self._channel.send(b"landed")


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
