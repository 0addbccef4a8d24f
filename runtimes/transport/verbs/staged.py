"""The rung `rdma-staged`: from a ring of the sender into a ring at the receiver, on every rail one.

A source may change as soon as it is copied, nobody writes beside the ring, and the credit for a piece of it also says
that its WRITE is over.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtimes.transport.channel import ChannelError, Frame, Rung
from runtimes.transport.credit import Credit
from runtimes.transport.ringed import Ringed
from runtimes.transport.verbs.rail import Rail


class Staged(Ringed):
    rung: Rung = "rdma-staged"

    def __init__(self, rails: Sequence[Rail]) -> None:
        self.streams = self._rails = rails
        self.ports = [rail.end.port for rail in rails]
        self._credits = [Credit(rail.end.size) for rail in rails]
        self._carried = [0 for _ in rails]

    @property
    def largest(self) -> int:
        return min(credit.largest for credit in self._credits)

    def free(self) -> int:
        return max(credit.free() for credit in self._credits)

    def view(self, lane: int) -> memoryview:
        view = self._rails[lane].end.ring.view
        if view is None:
            raise ChannelError("closed", "closed on this side")
        return view

    def reserve(self, size: int) -> tuple[int, int]:
        lane = max(
            range(len(self._rails)), key=lambda lane: (self._credits[lane].free(), -self._carried[lane])
        )
        self._carried[lane] += size
        return lane, self._credits[lane].reserve(size)

    def post(self, lane: int, frame: Frame, body: bytes) -> None:
        end = self._rails[lane].end
        if not end.remote_ring:
            raise ChannelError("protocol", "blocks go to the side that dialled")
        piece = end.ring.piece(frame.offset, frame.size, end.remote_ring + frame.offset, end.remote_key)
        self._rails[lane].write(frame, body, (piece,))

    def credited(self, lane: int, size: int) -> None:
        self._credits[lane].give_back(size)

    def lose(self, error: ChannelError) -> None:
        for credit in self._credits:
            credit.lose(error)
