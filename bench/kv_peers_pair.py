"""`python -m bench.kv_peers_pair RUNG`: one round of ours for bench/kv_peers.py; the far side is a process of its
own.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from queue import SimpleQueue
from typing import Final

from bench.peers.pair import REGION, TOTAL, WRITE, busy_seconds, resident
from runtimes.transport.channel import ChannelError, Extent, Frame, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel

KEY: Final = bytes(32)
BLOCK: Final = 64 << 10
MESSAGES: Final = 5000
PER_WRITE: Final = WRITE // BLOCK


class Ear:
    """Both sides' receiver and landing, over one layer."""

    def __init__(self) -> None:
        self.memory = memoryview(resident(REGION))
        self.messages: SimpleQueue[bytes] = SimpleQueue()
        self.done_with: SimpleQueue[int] = SimpleQueue()

    def message(self, channel: object, body: bytes) -> None:
        self.messages.put(body)

    def lost(self, channel: object, error: ChannelError) -> None:
        self.done_with.put(-1)
        self.messages.put(b"")

    def window(self, frame: Frame) -> memoryview | None:
        return self.memory[frame.target * BLOCK : frame.target * BLOCK + frame.size]

    def landed(self, frame: Frame, broken: list[int]) -> None:
        if broken:
            raise SystemExit(f"blocks {broken} arrived broken")

    def done(self, transfer: int, blocks: int) -> None:
        self.done_with.put(transfer)

    @property
    def extent(self) -> Extent:
        return Extent(ctypes.addressof(ctypes.c_char.from_buffer(self.memory)), REGION, owner=self.memory)


def far(rung: Rung) -> None:
    """Prefill: writes as many bytes as each message asks for; answers one that asks for none."""
    accepted: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(KEY, lambda: Identity("far", 1, Layout()), accepted.put, (rung,))
    print(listener.addr, flush=True)
    channel, ear = accepted.get(), Ear()
    channel.start(ear, None)
    channel.use([ear.extent])
    blocks = [ear.memory[at : at + BLOCK] for at in range(0, REGION, BLOCK)]
    while body := ear.messages.get():
        if body == b"ping":
            channel.send(body)
            continue
        transfer, size = map(int, body.split())
        while channel.rungs != (rung,):
            if why := channel.passed:
                raise SystemExit("; ".join(why))
            time.sleep(0.0002)
        for number in range(size // WRITE):
            first = number * PER_WRITE % len(blocks)
            channel.write(transfer, 0, first, blocks[first : first + PER_WRITE], rung)
        channel.finish(transfer, size // BLOCK, rung)
        channel.flush(transfer, rung)
    os._exit(0)


def near(rung: Rung) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.kv_peers_pair", rung, "--far"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    addr, ear = process.stdout.readline().strip(), Ear()
    began = time.perf_counter()
    channel = dial(addr, KEY, Identity("near", 1, Layout()), rungs=(rung,))
    channel.start(ear, ear)
    channel.expose([ear.extent])
    _move(channel, ear, 1, WRITE)
    first_ms = (time.perf_counter() - began) * 1e3
    _move(channel, ear, 2, REGION)
    busy, began = busy_seconds(), time.perf_counter()
    _move(channel, ear, 3, TOTAL)
    took, used = time.perf_counter() - began, busy_seconds() - busy
    began = time.perf_counter()
    for _ in range(MESSAGES):
        channel.send(b"ping")
        ear.messages.get()
    one_way_us = (time.perf_counter() - began) / MESSAGES / 2 * 1e6
    channel.close()
    process.wait()
    facts = {"MB/s": TOTAL / took / 1e6, "s/GiB": used / TOTAL * (1 << 30)}
    return {**facts, "ms": first_ms, "us": one_way_us}


def _move(channel: Channel, ear: Ear, transfer: int, size: int) -> None:
    channel.send(b"%d %d" % (transfer, size))
    if ear.done_with.get() != transfer:
        raise SystemExit(f"the channel was lost: {channel.lost}")


if __name__ == "__main__":
    chosen: Rung = sys.argv[1]  # type: ignore[assignment]
    if "--far" in sys.argv:
        far(chosen)
    print(json.dumps(near(chosen)), flush=True)
    os._exit(0)  # NIXL's libraries crash in `exit`
