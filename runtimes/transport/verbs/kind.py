"""What a side has ready for the rungs over verbs: its ends on every device that serves the channel."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.carriers import SocketStream
from runtimes.transport.channel import ChannelError, Control, Way
from runtimes.transport.kinds import Kind, Setting
from runtimes.transport.verbs import cards
from runtimes.transport.verbs.direct import Direct
from runtimes.transport.verbs.ends import Ends
from runtimes.transport.verbs.rail import Rail, VerbsControl, watch
from runtimes.transport.verbs.side import Side, differs
from runtimes.transport.verbs.staged import Staged

_SETTLE_S: Final = 0.5


class VerbsKind(Kind):
    def __init__(self, ends: Sequence[Ends], setting: Setting) -> None:
        self._ends = list(ends)
        self._setting = setting
        self._direct: Direct | None = None

    @classmethod
    def offered(cls, setting: Setting) -> VerbsKind:
        place = cards.find(setting.rdma)[0]
        return cls([Ends(place, _ring(setting), receives=True)], setting)

    @classmethod
    def answered(cls, word: bytes, setting: Setting) -> VerbsKind:
        theirs = _sides(word)[0]
        size = _ring(setting)
        if theirs.ring_size != size or bool(theirs.ring_key) != bool(size):
            raise ChannelError("protocol", "the offer has no ring of the window's size")
        found = cards.find(setting.rdma)
        place = next((place for place in found if not differs(place, theirs)), None)
        if place is None:
            raise ChannelError("incompatible", differs(found[0], theirs))
        made = cls([Ends(place, size, receives=False)], setting)
        try:
            made._ends[0].connect(theirs)
        except BaseException:
            made.close()
            raise
        return made

    def word(self) -> bytes:
        return msgspec.msgpack.encode([end.side() for end in self._ends])

    def agreed(self, word: bytes) -> None:
        for end, side in zip(self._ends, _sides(word), strict=True):
            end.connect(side)

    def control(self, lifeline: socket.socket) -> Control | None:
        watch(self._ends, lifeline)
        return VerbsControl(self._ends)

    def ways(self, bulk: SocketStream) -> Sequence[Way]:
        rails = [Rail(end, self._ends) for end in self._ends]
        ways: list[Way] = []
        if "rdma" in self._setting.rungs:
            self._direct = Direct(rails, self._setting.window)
            ways.append(self._direct)
        if "rdma-staged" in self._setting.rungs:
            ways.append(Staged(rails))
        return ways

    def settle(self) -> None:
        for end in self._ends:
            for queue in end.queues:
                queue.settle(_SETTLE_S)

    def close(self) -> None:
        for end in self._ends:
            for queue in end.queues:
                queue.close()
        if self._direct is not None:
            self._direct.close()
        for end in self._ends:
            end.close()


def _ring(setting: Setting) -> int:
    return setting.window if "rdma-staged" in setting.rungs else 0


def _sides(word: bytes) -> list[Side]:
    try:
        sides = msgspec.msgpack.decode(word, type=list[Side])
    except UNREADABLE as error:
        raise ChannelError("protocol", str(error)) from error
    if not sides:
        raise ChannelError("protocol", "no queue pair")
    return sides
