"""Channels between the two ends of the wire, in this process or with the sender in another one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from queue import SimpleQueue
from typing import Any

from runtimes.transport.channel import Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.link import Sockets
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.transport.verbs.ends import Ends
from runtimes.transport.verbs.kind import VerbsKind
from tests.rdma.machine import Nics
from tests.support.channel_ends import BLOCK, KEY, WAIT_S, Ear, extent, until


def ends(channel: Channel) -> tuple[Ends, ...]:
    """What it has of each device."""
    assert isinstance(channel._link, Sockets)
    (kind,) = (kind for kind in channel._link._kinds if isinstance(kind, VerbsKind))
    return kind.ends


def prefill(**more: Any) -> tuple[Listener, SimpleQueue[Channel]]:
    """A listener at the far end, and the channels that it accepts."""
    accepted: SimpleQueue[Channel] = SimpleQueue()
    given: dict[str, Any] = {"rungs": ("rdma", "rdma-staged", "tcp"), "rdma": Nics().at_far, **more}
    return Listener(KEY, lambda: Identity("p", 7, Layout()), accepted.put, **given), accepted


def decode(addr: str, rungs: tuple[Rung, ...] = ("rdma-staged",), **more: Any) -> Channel:
    """A channel to it from the near end."""
    given: dict[str, Any] = {"peer_generation": 7, "rdma": Nics().at_near, "window": 4 << 20, **more}
    return dial(addr, KEY, Identity("d", 3, Layout()), rungs=rungs, **given)


class Pair:
    """Both sides in this process, with one layer of memory each."""

    def __init__(self, rung: Rung = "rdma-staged", **more: Any) -> None:
        self.listener, self.accepted = prefill(rdma=more.pop("far", Nics().at_far))
        self.decode = decode(self.listener.addr, (rung,), **more)
        self.prefill = self.accepted.get(timeout=WAIT_S)
        self.at_decode, self.at_prefill = Ear(), Ear()
        self.decode.start(self.at_decode, self.at_decode)
        self.prefill.start(self.at_prefill, None)
        self.decode.expose([extent(self.at_decode.memory)])
        self.prefill.use([extent(self.at_prefill.memory)])
        self._next = itertools.count()
        until(lambda: self.decode.rungs == self.prefill.rungs == (rung,))

    def fill(self, count: int) -> list[memoryview]:
        """Blocks behind each other in prefill's memory, with fresh bytes; the eighth call writes over the first."""
        first = next(self._next) % 8 * 16
        part = self.at_prefill.memory[first * BLOCK : (first + count) * BLOCK]
        part[:] = os.urandom(len(part))
        return [part[at : at + BLOCK] for at in range(0, len(part), BLOCK)]

    def close(self) -> None:
        self.decode.close()
        self.prefill.close()
        self.listener.close()


class Sender:
    """A prefill side in a process of its own, which writes blocks until it is killed (see peer.py)."""

    def __init__(self, rung: Rung) -> None:
        command = [sys.executable, "-m", "tests.rdma.peer", rung]
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
