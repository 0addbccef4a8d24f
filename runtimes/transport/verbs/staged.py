"""The rung `rdma-staged`: from a ring of the sender into a ring at the receiver, on every rail one.

A source may change as soon as it is copied, nobody writes beside the ring, and the credit for a piece of it also says
that its WRITE is over.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtimes.transport.channel import ChannelError, Frame, Rung, Way
from runtimes.transport.credit import Credit, give_back
from runtimes.transport.shm import copy_in, copy_out
from runtimes.transport.verbs.rail import Rail


class Staged(Way):
    rung: Rung = "rdma-staged"

    def __init__(self, rails: Sequence[Rail]) -> None:
        self.streams = self._rails = rails
        self._credits = [Credit(rail.end.size) for rail in rails]

    @property
    def largest(self) -> int:
        return min(credit.largest for credit in self._credits)

    def free(self) -> int:
        return max(credit.free() for credit in self._credits)

    def write(self, frame: Frame, checksums: bytes, blocks: Sequence[memoryview]) -> None:
        lane = max(range(len(self._rails)), key=lambda lane: self._credits[lane].free())
        end = self._rails[lane].end
        offset = self._credits[lane].reserve(frame.size)
        if not end.remote_ring or end.ring.view is None:
            raise ChannelError("protocol", "blocks go to the side that dialled")
        copy_in(end.ring.view, blocks, offset)
        piece = end.ring.piece(offset, frame.size, end.remote_ring + offset, end.remote_key)
        self._rails[lane].write(frame._replace(offset=offset), checksums, (piece,))

    def fetch(self, lane: int, frame: Frame, window: memoryview | None) -> None:
        rail = self._rails[lane]
        if rail.end.ring.view is None:
            raise ChannelError("closed", "closed on this side")
        copy_out(rail.end.ring.view, frame.offset, frame.size, window)
        give_back(rail, frame)

    def credited(self, lane: int, size: int) -> None:
        self._credits[lane].give_back(size)

    def lose(self, error: ChannelError) -> None:
        for credit in self._credits:
            credit.lose(error)
