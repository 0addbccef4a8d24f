"""The side of `galaxy kv bench` that has the blocks: it sends whatever the other side claims, as an instance would.

The other side says first how large blocks are and how many. As a program of its own (`python -m`) it serves one rung
on this machine, and ends with its input.
"""

from __future__ import annotations

import mmap
import random
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Final

from runtimes.transport.channel import ChannelError, Landing, Receiver, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener
from runtimes.transport.pair import Channel
from runtimes.transport.rungs import RUNGS
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.pushing import Pushes

#: Messages that are no jobs (jobs.py), by their first bytes.
SIZE: Final = b"size"  # and `SIZES`
CPU: Final = b"cpu?"  # the answer has seconds of this process, `SECONDS`
SIZES: Final = struct.Struct("<QQ")  # bytes of a block, blocks
SECONDS: Final = struct.Struct("<d")
MOST: Final = 4 << 30  # bytes
#: What all blocks are claimed of.
SOURCE: Final = 0
_LEASE_S: Final = 600.0


def identity() -> Identity:
    """An instance is none of these, and has no use for its blocks."""
    return Identity(f"galaxy kv bench on {socket.gethostname()}", 1, Layout(engine="galaxy kv bench 1"))


def made(block: int, blocks: int) -> memoryview:
    """Blocks on pages of their own."""
    return memoryview(mmap.mmap(-1, block * blocks))


def contents(size: int) -> bytes:
    """What the blocks hold, on both sides."""
    return random.Random(size).randbytes(size)


class _Asides:
    """Between a channel and its transfers: answers what is no job."""

    def __init__(self, receiver: Receiver, memory: KvMemory, pushes: Pushes) -> None:
        self._receiver = receiver
        self._memory = memory
        self._pushes = pushes

    def message(self, channel: object, body: bytes) -> None:
        if body.startswith(SIZE):
            self._size(body[len(SIZE) :])
        elif body == CPU:
            assert isinstance(channel, Channel)
            channel.send(CPU + SECONDS.pack(time.process_time()))
        else:
            self._receiver.message(channel, body)

    def lost(self, channel: object, error: ChannelError) -> None:
        self._receiver.lost(channel, error)

    def _size(self, body: bytes) -> None:
        block, blocks = SIZES.unpack(body)
        if not 0 < block * blocks <= MOST or self._memory.blocks:
            raise ChannelError(
                "protocol", f"{blocks} blocks of {block} bytes: once, and at most {MOST} bytes"
            )
        view = made(block, blocks)
        view[:] = contents(len(view))
        self._memory.register_views([view], blocks)
        self._pushes.offer(SOURCE, range(blocks), blocks, True)


def serve(key: bytes, host: str, port: int, rungs: Sequence[Rung] = RUNGS) -> Listener:
    """Until it is closed. Raises OSError when it can't listen there."""

    def accepted(channel: Channel) -> None:
        memory = KvMemory()
        pushes = Pushes(memory, _LEASE_S)
        pushes.source_of = lambda _, number: number

        def wrap(receiver: Receiver, landing: Landing | None) -> tuple[Receiver, Landing | None]:
            return _Asides(receiver, memory, pushes), landing

        pushes.attach(channel, wrap)

    return Listener(key, identity, accepted, rungs, host, port=port)


def main(rung: Rung) -> None:
    listener = serve(b"", "127.0.0.1", 0, (rung,))
    print(listener.addr, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])  # type: ignore[arg-type]
