"""A short test of the link to another machine: bytes intact, bandwidth both ways, time of a message. Over verbs only.

One side serves, the other one measures: it WRITEs into the server's ring and READs out of it, and sends messages that
the server sends back. They meet over TCP (meeting.py), which carries nothing else; its end ends the test.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from kserve_ext.cli.rdma.meeting import answer, call
from runtimes.transport import sockets
from runtimes.transport.channel import ChannelError
from runtimes.transport.verbs import cards
from runtimes.transport.verbs.choice import Place
from runtimes.transport.verbs.ends import Ends
from runtimes.transport.verbs.side import Side, differs
from runtimes.transport.verbs.work import Piece

RING: Final = 16 << 20
PIECE: Final = 1 << 20
MESSAGE: Final = 64
MESSAGES: Final = 1000
_MEET_S: Final = 5.0
_MEASURE_S: Final = 1.0


class Measured(NamedTuple):
    device: str  # "mlx5_0:1"
    peer_device: str
    address: str
    gid_index: int
    mtu: int
    intact: bool  # whether what was written is what was read back
    write_mb_s: float
    read_mb_s: float
    message_us: float  # one way: half of a round trip's median
    message_p99_us: float


def listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port))


def serve(listening: socket.socket, key: bytes, told: Callable[[str], None]) -> None:
    """One test after the other, for ever. `told` hears how each went."""
    while True:
        connection, (address, *_) = listening.accept()
        try:
            told(f"the test from {_answer(connection, key)} ({address}) has ended")
        except ChannelError as error:
            told(f"a test from {address} failed: {error}")
        finally:
            sockets.close(connection)


def measure(host: str, port: int, key: bytes) -> Measured:
    place = cards.find()[0]
    try:
        connection = socket.create_connection((host, port), _MEET_S)
    except OSError as error:
        raise ChannelError("unreachable", f"{host}:{port}: {error}") from error
    with contextlib.ExitStack() as undo:
        undo.callback(sockets.close, connection)
        sockets.tune(connection)
        ends = Ends(place, RING, receives=True, readable=True)
        undo.callback(ends.close)
        theirs = call(connection, key, socket.gethostname(), ends.side())
        if theirs.ring_size != RING:
            raise ChannelError("incompatible", "the peer's ring has another size: use the same version")
        ends.connect(theirs)
        _watch(ends, connection)
        return _measured(ends, theirs.device, place)


def _watch(ends: Ends, connection: socket.socket) -> None:
    """The peer's end ends the test."""
    connection.settimeout(None)
    for queue in (ends.control, ends.bulk):
        queue.watch(connection.fileno())


def _answer(connection: socket.socket, key: bytes) -> str:
    """One test, at the side that serves: the name of the other."""
    connection.settimeout(_MEET_S)
    sockets.tune(connection)
    with contextlib.ExitStack() as undo:
        made: list[Ends] = []

        def ready(theirs: Side) -> Side:
            made.append(Ends(_place(theirs), RING, receives=True, readable=True))
            undo.callback(made[0].close)
            made[0].connect(theirs)
            return made[0].side()

        name = answer(connection, key, ready)
        _watch(made[0], connection)
        _echo(made[0])
    return name


def _place(theirs: Side) -> Place:
    """The best of ours that can talk to theirs."""
    found = cards.find()
    place = next((place for place in found if not differs(place, theirs)), None)
    if place is None:
        raise ChannelError("incompatible", differs(found[0], theirs))
    return place


def _echo(ends: Ends) -> None:
    """Until the other side has gone, which is how a test ends."""
    try:
        while True:
            got = ends.control.receive()
            ends.control.send(got if isinstance(got, bytes) else b"")
    except ChannelError as error:
        if error.reason != "closed":
            raise


def _measured(ends: Ends, peer_device: str, place: Place) -> Measured:
    pieces = [
        ends.ring.piece(at, PIECE, ends.remote_ring + at, ends.remote_key) for at in range(0, RING, PIECE)
    ]
    intact = _intact(ends, pieces)
    times = sorted(_round_trip(ends) for _ in range(MESSAGES))
    return Measured(
        device=f"{place.device}:{place.port}",
        peer_device=peer_device,
        address=place.gid,
        gid_index=place.gid_index,
        mtu=place.mtu,
        intact=intact,
        write_mb_s=_rate(lambda: ends.bulk.wait(ends.bulk.write(pieces))),
        read_mb_s=_rate(lambda: ends.bulk.wait(ends.bulk.read(pieces))),
        message_us=statistics.median(times) / 2 * 1e6,
        message_p99_us=times[len(times) * 99 // 100] / 2 * 1e6,
    )


def _intact(ends: Ends, pieces: list[Piece]) -> bool:
    """Random bytes go there and come back into a ring that was cleared. Also warms everything up."""
    ring = ends.ring.view
    assert ring is not None
    ring[:] = sent = os.urandom(RING)
    ends.bulk.wait(ends.bulk.write(pieces))
    ring[:] = bytes(RING)
    ends.bulk.wait(ends.bulk.read(pieces))
    return ring == sent


def _rate(carry: Callable[[], None]) -> float:
    """MB/s of carrying the ring again and again, for about a second."""
    began, count = time.perf_counter(), 0
    while True:
        carry()
        count += 1
        took = time.perf_counter() - began
        if took >= _MEASURE_S:
            return count * RING / took / 1e6


def _round_trip(ends: Ends) -> float:
    began = time.perf_counter()
    ends.control.send(bytes(MESSAGE))
    ends.control.receive()
    return time.perf_counter() - began
