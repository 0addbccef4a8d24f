"""What a side must have ready before a channel stands, by kind of connection: a kind brings one rung or several.

The dialler makes a kind to offer it, the listener from what was offered; each gives the other one word, within the
handshake. A kind that can't be had raises ChannelError, whose detail is the reason that people read.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.carriers import SharedMemory, SocketStream, Tcp
from runtimes.transport.channel import ChannelError, Control, Rung, Way
from runtimes.transport.shm import Ring, unlink
from runtimes.transport.verbs.choice import Wanted

#: What the dialler writes of shared memory is so many times smaller than what the listener does.
_BACK: Final = 4


class Setting(NamedTuple):
    """What one side wants of a channel."""

    rungs: Sequence[Rung]  # that both sides may use
    window: int  # bytes of writes that may be under way
    rdma: Wanted | None = None  # None: what the environment says


class Kind(ABC):
    """Of one channel to be, on one side; closed with it, or when it is not chosen."""

    def word(self) -> bytes:
        """What the other side must know."""
        return b""

    def agreed(self, word: bytes) -> None:
        """At the dialler: the listener's word. Raises ChannelError when it makes no sense."""
        return

    def forget(self) -> None:
        """At the dialler, once both sides have it or won't: whatever others could still find by a name."""
        return

    @abstractmethod
    def ways(self, bulk: SocketStream) -> Sequence[Way]:
        """Once both connections stand."""

    def control(self, lifeline: socket.socket) -> Control | None:
        """A connection for messages that is better than a socket."""
        return None

    def settle(self) -> None:
        """Waits, not for long, until what was sent has arrived."""
        return

    def close(self) -> None:
        """No peer reaches memory of this process any more."""
        return


class TcpKind(Kind):
    def __init__(self, setting: Setting) -> None:
        self._window = setting.window

    def ways(self, bulk: SocketStream) -> Sequence[Way]:
        return (Tcp(bulk, self._window),)


class _Offer(msgspec.Struct, frozen=True):
    name: str
    size: int
    token: bytes


class ShmKind(Kind):
    """The dialler makes the memory; the listener's echo in it proves that it sees it.

    Most blocks go to the dialler: so the listener writes most of it.
    """

    def __init__(self, ring: Ring, name: str = "", token: bytes = b"") -> None:
        self._ring = ring
        self._name, self._token = name, token

    @classmethod
    def offered(cls, setting: Setting) -> ShmKind:
        return cls(*Ring.create(setting.window + setting.window // _BACK))

    @classmethod
    def answered(cls, word: bytes, setting: Setting) -> ShmKind:
        try:
            offer = msgspec.msgpack.decode(word, type=_Offer)
        except UNREADABLE as error:
            raise ChannelError("protocol", str(error)) from error
        ring = Ring.attach(offer.name, offer.size, offer.token)
        if ring is None:
            raise ChannelError("memory", "the two sides don't see the same memory")
        return cls(ring)

    def word(self) -> bytes:
        return msgspec.msgpack.encode(_Offer(self._name, self._ring.size, self._token)) if self._name else b""

    def agreed(self, word: bytes) -> None:
        if not self._ring.echoed(self._token):
            raise ChannelError("protocol", "the listener claims shared memory that it did not write to")

    def forget(self) -> None:
        unlink(self._name)

    def ways(self, bulk: SocketStream) -> Sequence[Way]:
        size = self._ring.size
        listeners = size - size // (_BACK + 1)
        own = range(listeners, size) if self._name else range(listeners)
        return (SharedMemory(bulk, self._ring, own),)

    def close(self) -> None:
        self._ring.close()
