"""What one part hears of the others, made worse for a while: late, twice, not at all.

Between the connections of a part's process and their transports, put there by the nursery before any part runs. Which
weather there is stands in a file of four doubles that the runner writes, and that is read with every batch of bytes:

    resend   every request comes again, up to so many seconds later
    slow     what comes on a connection waits up to so many seconds; the order within one holds, as with TCP, but
             those of different connections overtake each other
    silent   of that share of the connections nothing is heard; then all of it, in order
    lost     likewise; then the connection breaks, and what was not heard never is

What the part says itself goes out as ever; what it says on a connection that the peer has given up meanwhile goes
nowhere, as with TCP. A connection that is dialled meanwhile has the same weather, its hello too.
(tests/support/faulty_rpc.py loses single frames in one process, which no real connection does.)
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final, NamedTuple

from kserve_ext.rpc.connection import Connection
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.wire.frames import REQUEST, Frame

KINDS: Final = ("resend", "slow", "silent", "lost")
LAYOUT: Final = struct.Struct(f"{len(KINDS)}d")
#: what has waited for long enough is handed on this often
TICK_S: Final = 0.01


class Weather(NamedTuple):
    resend_s: float = 0.0
    slow_s: float = 0.0
    silent: float = 0.0
    lost: float = 0.0


def write(path: Path, weather: Weather) -> None:
    if path.exists():
        with path.open("r+b") as file:
            file.write(LAYOUT.pack(*weather))
    else:
        path.write_bytes(LAYOUT.pack(*weather))


@dataclass(slots=True)
class Line:
    """What waits on one connection; `end`: it was lost behind that, with this error."""

    mute: bool = False
    lost: bool = False
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    due: float = 0.0
    ended: bool = False
    error: Exception | None = None


class Nowhere:
    """The transport of a connection that has ended, and whose part has yet to hear so."""

    def write(self, data: bytes) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Frames:
    """Of one process; the nursery makes one, and each part follows its own file."""

    def __init__(self) -> None:
        self._rng = Random()
        self._file: mmap.mmap | None = None
        self._lines: dict[Connection, Line] = {}
        self._ticking = False

    def put_in_place(self) -> None:
        self._received, self._ended = Connection.data_received, Connection.connection_lost
        self._requested = Rpc.requested
        setattr(Connection, "data_received", lambda c, data: self.received(c, data))  # noqa: B010
        setattr(Connection, "connection_lost", lambda c, error: self.ended(c, error))  # noqa: B010
        setattr(Rpc, "requested", lambda rpc, c, f, at: self.requested(rpc, c, f, at))  # noqa: B010

    def follow(self, path: str, seed: str) -> None:
        handle = os.open(path, os.O_RDONLY)
        self._file = mmap.mmap(handle, LAYOUT.size, prot=mmap.PROT_READ)
        os.close(handle)
        self._rng = Random(seed)

    @property
    def weather(self) -> Weather:
        return Weather(*LAYOUT.unpack(self._file[: LAYOUT.size])) if self._file is not None else Weather()

    # --- what a connection hears

    def requested(self, rpc: Rpc, connection: Connection, f: Frame, arrived: float) -> None:
        self._requested(rpc, connection, f, arrived)
        resend_s = self.weather.resend_s
        if resend_s and f.kind == REQUEST:
            later = self._rng.uniform(0.0, resend_s)
            connection.loop.call_later(later, self._again, rpc, connection, f)

    def _again(self, rpc: Rpc, connection: Connection, f: Frame) -> None:
        if connection.alive:
            self._requested(rpc, connection, f, monotonic())

    def received(self, connection: Connection, data: bytes) -> None:
        line, weather = self._lines.get(connection), self.weather
        if line is None:
            if not any(weather[1:]):
                self._received(connection, data)
                return
            line = self._line(connection, weather)
        now = monotonic()
        line.due = max(line.due, now + self._rng.uniform(0.0, weather.slow_s))
        line.held.append((line.due, bytes(data)))

    def ended(self, connection: Connection, error: Exception | None) -> None:
        """Behind what was said before it; unless it is our own doing."""
        line = self._lines.get(connection)
        if line is None or not connection.alive:
            self._lines.pop(connection, None)
            self._ended(connection, error)
        else:
            line.ended, line.error = True, error
            # uvloop's own raises an error when it is written to now.
            setattr(connection, "_transport", Nowhere())  # noqa: B010

    def _line(self, connection: Connection, weather: Weather) -> Line:
        share = self._rng.random()
        lost = share < weather.lost
        line = self._lines[connection] = Line(lost or share < weather.silent, lost)
        if not self._ticking:
            self._ticking = True
            connection.loop.call_later(TICK_S, self._tick, connection.loop)
        return line

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            for connection, line in list(self._lines.items()):
                self._hand_on(connection, line)
        finally:  # one that fails to take what it hears must not keep the others silent
            self._ticking = bool(self._lines)
            if self._ticking:
                loop.call_later(TICK_S, self._tick, loop)

    def _hand_on(self, connection: Connection, line: Line) -> None:
        weather = self.weather
        if line.mute and (weather.lost if line.lost else weather.silent):
            return
        if line.lost:
            del self._lines[connection]
            self._break(connection, line)
            return
        line.mute = False
        while line.held and line.held[0][0] <= monotonic() and connection in self._lines:
            self._received(connection, line.held.popleft()[1])
        if not line.held and (line.ended or not any(weather[1:])):
            self._lines.pop(connection, None)
            if line.ended:
                self._ended(connection, line.error)

    def _break(self, connection: Connection, line: Line) -> None:
        transport = connection._transport
        if line.ended or transport is None:
            self._ended(connection, line.error)
        else:
            transport.abort()
