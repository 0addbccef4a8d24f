"""What a side has ready for the rungs over verbs: its ends on every device that serves the channel."""

from __future__ import annotations

import mmap
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.carriers import SocketStream
from runtimes.transport.channel import ChannelError, Control, Way
from runtimes.transport.kinds import Kind, Setting
from runtimes.transport.verbs import cards
from runtimes.transport.verbs.choice import MOST_RAILS, rails
from runtimes.transport.verbs.direct import Direct
from runtimes.transport.verbs.ends import Ends
from runtimes.transport.verbs.rail import Rail, VerbsControl, watch
from runtimes.transport.verbs.side import VERSION, Side, differs
from runtimes.transport.verbs.staged import Staged

_SETTLE_S: Final = 0.5


class _Rail(msgspec.Struct, frozen=True):
    """One pair of devices, as one side sees it."""

    number: int  # in the offer
    side: Side


_rails = msgspec.msgpack.Decoder(list[_Rail])


class VerbsKind(Kind):
    """The dialler offers all that it may use, the listener takes those of them that it can pair with its own."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._ends: dict[int, Ends] = {}  # by number in the offer, the one with the messages first
        self._direct: Direct | None = None

    @classmethod
    def offered(cls, setting: Setting) -> VerbsKind:
        made = cls(setting)
        places = cards.find(setting.rdma)[:MOST_RAILS]
        size = setting.window // len(places) // mmap.PAGESIZE * mmap.PAGESIZE if made._staged else 0
        try:
            for number, place in enumerate(places):
                made._ends[number] = Ends(place, size, receives=True)
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def answered(cls, word: bytes, setting: Setting) -> VerbsKind:
        made = cls(setting)
        theirs = [rail.side for rail in _read(word)]
        if theirs[0].version != VERSION:
            raise ChannelError("incompatible", f"version: {VERSION} here, {theirs[0].version} there")
        for side in theirs:
            if (
                bool(side.ring_key) != made._staged
                or not (0 < side.ring_size <= setting.window) == made._staged
            ):
                raise ChannelError("protocol", "the offer's rings don't fit its window")
        choice = setting.rdma or cards.wanted()
        places = cards.find(choice)
        pairs = rails(places, theirs, named=len(choice.devices) > 1)
        if not pairs:
            raise ChannelError("incompatible", differs(places[0], theirs[0]))
        try:
            for mine, number in pairs:
                side = theirs[number]
                end = Ends(places[mine], side.ring_size, receives=False, control=not made._ends)
                made._ends[number] = end
                end.connect(side)
        except BaseException:
            made.close()
            raise
        return made

    def word(self) -> bytes:
        return msgspec.msgpack.encode([_Rail(number, end.side()) for number, end in self._ends.items()])

    def agreed(self, word: bytes) -> None:
        taken = {rail.number: rail.side for rail in _read(word)}
        if not set(taken) <= set(self._ends):
            raise ChannelError("protocol", "the listener takes devices that were not offered")
        for number in set(self._ends) - set(taken):
            self._ends.pop(number).close()
        self._ends = {number: self._ends[number] for number in taken}
        for end in self.ends[1:]:
            end.without_control()
        for number, side in taken.items():
            self._ends[number].connect(side)

    @property
    def ends(self) -> tuple[Ends, ...]:
        return tuple(self._ends.values())

    @property
    def _staged(self) -> bool:
        return "rdma-staged" in self._setting.rungs

    def control(self, lifeline: socket.socket) -> Control | None:
        watch(self.ends, lifeline)
        return VerbsControl(self.ends)

    def ways(self, bulk: SocketStream) -> Sequence[Way]:
        streams = [Rail(end, self.ends) for end in self.ends]
        ways: list[Way] = []
        if "rdma" in self._setting.rungs:
            self._direct = Direct(streams, self._setting.window)
            ways.append(self._direct)
        if self._staged:
            ways.append(Staged(streams))
        return ways

    def settle(self) -> None:
        for end in self.ends:
            for queue in end.queues:
                queue.settle(_SETTLE_S)

    def close(self) -> None:
        for end in self.ends:
            for queue in end.queues:
                queue.close()
        if self._direct is not None:
            self._direct.close()
        for end in self.ends:
            end.close()


def _read(word: bytes) -> list[_Rail]:
    try:
        found = _rails.decode(word)
    except UNREADABLE as error:
        raise ChannelError("protocol", str(error)) from error
    if not found:
        raise ChannelError("protocol", "no queue pair")
    return found
