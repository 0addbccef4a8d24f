"""When bytes leave: everything of one turn of the loop with one write to each connection."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from activator_replacement.http2.peer import Outgoing, Peer
from kserve_ext.wire.http2.connection import Connection
from kserve_ext.wire.http2.frames import PING, frame, settings
from tests.support.dataplane import run


class Transport:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closing


def peer(outgoing: Outgoing) -> tuple[Peer, Transport]:
    made = Peer(outgoing)
    transport = Transport()
    made.transport = cast("asyncio.Transport", transport)
    made.connection = Connection(cast("Any", made), 0.0, client=True)
    made.flush()
    made.connection.receive(settings(), 0.0)
    made.flush()
    transport.writes.clear()
    return made, transport


def test_one_write_a_turn_to_each_connection() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        outgoing = Outgoing(loop)
        (one, first), (two, second), (_, third) = (peer(outgoing) for _ in range(3))
        await asyncio.sleep(0)
        for turn in (1, 2):
            one.connection.receive(frame(PING, 0, 0, b"12345678"), 0.0)
            two.connection.begin(None, b"\x82\x84", True)
            one.connection.receive(frame(PING, 0, 0, b"12345678"), 0.0)
            assert len(first.writes) == len(second.writes) == turn - 1
            await asyncio.sleep(0)
            assert len(first.writes) == len(second.writes) == turn
            assert first.writes[-1] == frame(PING, 1, 0, b"12345678") * 2
        assert not third.writes

    run(test())


def test_what_a_closed_connection_has_to_send_is_dropped() -> None:
    async def test() -> None:
        one, transport = peer(Outgoing(asyncio.get_running_loop()))
        one.connection.receive(frame(PING, 0, 0, b"12345678"), 0.0)
        transport.closing = True
        await asyncio.sleep(0)
        assert (transport.writes, one.connection.out) == ([], [])

    run(test())


class Faulty(Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes) -> None:
        raise RuntimeError("a fault")

    def abort(self) -> None:
        self.aborted = True


def test_a_fault_in_one_connection_keeps_back_nothing_of_the_others() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        faults: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: faults.append(context))
        outgoing = Outgoing(loop)
        (one, _), (two, second) = (peer(outgoing) for _ in range(2))
        await asyncio.sleep(0)
        faulty = Faulty()
        one.transport = cast("asyncio.Transport", faulty)
        for connection in (one.connection, two.connection):
            connection.receive(frame(PING, 0, 0, b"12345678"), 0.0)
        await asyncio.sleep(0)
        assert second.writes == [frame(PING, 1, 0, b"12345678")]
        assert faulty.aborted
        assert [repr(context["exception"]) for context in faults] == ["RuntimeError('a fault')"]

    run(test())
