"""What both sides of the relay share: a transport, the HTTP/2 connection on it, and when its bytes leave.

Whatever comes about in one turn of the loop leaves at its end, with one write to each connection: all that was read
meanwhile, from however many connections, goes on together.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import asyncio
from typing import cast

from kserve_ext.wire.http2.connection import Connection


class Outgoing:
    """The connections of a process that have something to send in this turn."""

    __slots__ = ("_loop", "_peers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._peers: list[Peer] = []

    def add(self, peer: Peer) -> None:
        peers = self._peers
        if not peers:
            self._loop.call_soon(self._flush)
        peers.append(peer)

    def _flush(self) -> None:
        peers = self._peers
        self._peers = []
        for peer in peers:
            try:
                peer.flush()
            except Exception as fault:  # ends its connection, and none of the others
                said = {"message": "a connection could not be flushed", "exception": fault}
                self._loop.call_exception_handler({**said, "transport": peer.transport})
                peer.transport.abort()


class Peer(asyncio.Protocol):
    __slots__ = ("_outgoing", "connection", "transport")

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self.connection: Connection
        self.transport = cast("asyncio.Transport", None)  # set before anything else is called

    def pause_writing(self) -> None:
        self.connection.stuck = True

    def resume_writing(self) -> None:
        self.connection.unstick()

    def wake(self) -> None:
        self._outgoing.add(self)

    def flush(self) -> None:
        """What is to be sent goes to the transport."""
        connection = self.connection
        data = b"".join(connection.out)
        connection.out.clear()
        if data and not self.transport.is_closing():
            self.transport.write(data)
        connection.flushed()
