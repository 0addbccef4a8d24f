"""What a channel stands on: two sockets, the ways that both sides agreed on, and a better connection for control."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from runtimes.transport import sockets
from runtimes.transport.carriers import SocketControl
from runtimes.transport.channel import Control, Way
from runtimes.transport.kinds import Kind


class Sockets:
    """Takes over the sockets and the kinds. The end of a socket says that the peer has gone, whatever it carries."""

    def __init__(
        self, control: socket.socket, bulk: socket.socket, kinds: Sequence[Kind], ways: Sequence[Way]
    ) -> None:
        self.ways = ways
        self._sockets = (control, bulk)
        self._kinds = kinds
        found = (kind.control(control) for kind in kinds)
        better: list[Control] = [found for found in found if found is not None]
        #: Whether the peer hears of the end by a socket too early: before what was sent elsewhere.
        self._elsewhere = bool(better)
        self.control: Control = better[0] if better else SocketControl(control)

    def end(self) -> None:
        for each in self._sockets:
            if self._elsewhere:
                sockets.stop_reading(each)
            else:
                sockets.wake(each)

    def close(self, gently: bool) -> None:
        if gently:
            for kind in self._kinds:
                kind.settle()
        for each in self._sockets:
            sockets.close(each)
        for kind in self._kinds:
            kind.close()
