"""Channels between the two ends of the wire, in this process or with the sender in another one."""

from __future__ import annotations

import subprocess
import sys
from queue import SimpleQueue
from typing import Any

from runtimes.transport.channel import ChannelError, Frame, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from tests.rdma import machine
from tests.rdma.machine import Nics

KEY = b"k" * 32
BLOCK = 64 << 10
WAIT_S = 30.0


class Ear:
    """Both Receiver and Landing; everything that happens goes into a queue."""

    def __init__(self, blocks: int = 128) -> None:
        self._mapping = machine.memory(blocks * BLOCK)
        self.memory = memoryview(self._mapping)
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


def prefill(**more: Any) -> tuple[Listener, SimpleQueue[Channel]]:
    """A listener at the far end, and the channels that it accepts."""
    accepted: SimpleQueue[Channel] = SimpleQueue()
    given: dict[str, Any] = {"rungs": ("rdma", "tcp"), "rdma": Nics().at_far, **more}
    return Listener(KEY, lambda: Identity("p", 7, Layout()), accepted.put, **given), accepted


def decode(addr: str, rungs: tuple[Rung, ...] = ("rdma",), **more: Any) -> Channel:
    """A channel to it from the near end."""
    given: dict[str, Any] = {"peer_generation": 7, "rdma": Nics().at_near, "window": 4 << 20, **more}
    return dial(addr, KEY, Identity("d", 3, Layout()), rungs=rungs, **given)


class Pair:
    """Both sides in this process."""

    def __init__(self, **more: Any) -> None:
        self.listener, accepted = prefill()
        self.decode = decode(self.listener.addr, **more)
        self.prefill = accepted.get(timeout=WAIT_S)
        self.at_decode, self.at_prefill = Ear(), Ear(1)
        self.decode.start(self.at_decode, self.at_decode)
        self.prefill.start(self.at_prefill, None)

    def close(self) -> None:
        self.decode.close()
        self.prefill.close()
        self.listener.close()


class Sender:
    """A prefill side in a process of its own, which writes blocks until it is killed (see peer.py)."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.rdma.peer"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.addr = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
