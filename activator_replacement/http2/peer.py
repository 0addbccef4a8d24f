"""What both sides of the relay share: a transport, the HTTP/2 connection on it, and when its bytes leave.

All that one read gives rise to leaves with one write to each connection as soon as the read was looked at; what comes
about otherwise (Dispatch, timers, a transport that takes bytes again) leaves together in the next turn of the loop.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import asyncio
from typing import cast

from kserve_ext.wire.http2.connection import Connection


class Outgoing:
    """The connections of a process that have something to send."""

    __slots__ = ("_loop", "_peers", "_scheduled", "reading")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._peers: list[Peer] = []
        self._scheduled = False
        self.reading = False  # somebody reads, and flushes afterwards

    def add(self, peer: Peer) -> None:
        self._peers.append(peer)
        if not self.reading and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def flush(self) -> None:
        peers = self._peers
        self._peers = []
        for peer in peers:
            peer.flush()

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()


class Peer(asyncio.Protocol):
    __slots__ = ("_outgoing", "connection", "transport")

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self.connection: Connection
        self.transport = cast("asyncio.Transport", None)  # set before anything else is called

    def data_received(self, data: bytes) -> None:
        outgoing = self._outgoing
        outgoing.reading = True
        try:
            self.received(data)
        finally:
            outgoing.reading = False
            outgoing.flush()

    def received(self, data: bytes) -> None:
        raise NotImplementedError

    def pause_writing(self) -> None:
        self.connection.stuck = True

    def resume_writing(self) -> None:
        self.connection.unstick()

    def wake(self) -> None:
        self._outgoing.add(self)

    def flush(self) -> None:
        """What is to be sent goes to the transport."""
        connection = self.connection
        out = connection.out
        if out and not self.transport.is_closing():
            self.transport.write(b"".join(out))
        out.clear()
        connection.flushed()
