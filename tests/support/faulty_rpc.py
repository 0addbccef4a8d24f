"""Rpc in a bad world: frames of real connections are dropped, doubled, delayed and so overtaken, by a seed.

Between a Connection and its transport, for all connections of this process while `faulty()` lasts. What a connection
can't do by itself (TCP keeps order and loses nothing) is what connections that break and are made anew do together;
hellos are let through, since a connection without one is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from kserve_ext.rpc.connection import Connection
from kserve_ext.wire import frames
from kserve_ext.wire.frames import Frame, FrameReader


@dataclass
class Faults:
    """Chances of each fate of a frame; `calm` ends them all."""

    rng: Random
    drop: float = 0.1
    double: float = 0.1
    delay: float = 0.2
    delay_s: float = 0.2
    calm: bool = False
    dropped: int = 0
    doubled: int = 0
    delayed: int = 0
    _readers: dict[Connection, FrameReader] = field(default_factory=dict)

    def deliver(self, connection: Connection, data: bytes) -> None:
        reader = self._readers.setdefault(connection, FrameReader())
        loop = asyncio.get_running_loop()
        for f in reader.feed(data):
            whole = _bytes(f)
            if self.calm or f.kind == frames.HELLO:
                _received(connection, whole)
                continue
            fate = self.rng.random()
            if fate < self.drop:
                self.dropped += 1
            elif fate < self.drop + self.double:
                self.doubled += 1
                _received(connection, whole)
                loop.call_later(self.rng.uniform(0, self.delay_s), _received, connection, whole)
            elif fate < self.drop + self.double + self.delay:
                self.delayed += 1
                loop.call_later(self.rng.uniform(0, self.delay_s), _received, connection, whole)
            else:
                _received(connection, whole)


_received = Connection.data_received


def _bytes(f: Frame) -> bytes:
    return frames.frame(f.kind, f.method, f.call_id, f.body, f.epoch, f.deadline_ms, f.trace, f.span)


@contextmanager
def faulty(seed: int, **chances: float) -> Iterator[Faults]:
    faults = Faults(Random(seed), **chances)  # type: ignore[arg-type]

    def data_received(self: Connection, data: bytes) -> None:
        faults.deliver(self, data)

    Connection.data_received = data_received  # type: ignore[method-assign]
    try:
        yield faults
    finally:
        Connection.data_received = _received  # type: ignore[method-assign]
