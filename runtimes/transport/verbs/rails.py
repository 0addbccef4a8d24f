"""One transfer over several queue pairs, each on a device of its own: every rail carries an even share of the bytes.

Rails know nothing of each other, so what belongs behind a transfer (a message that it is complete) is sent after
`wait`. A rail that fails fails the transfer, with the device named; bytes that other rails have written stay where
they are, as after any WRITE that was cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtimes.transport.channel import ChannelError
from runtimes.transport.verbs.queue import WAIT_S, QueuePair
from runtimes.transport.verbs.work import LEAST, Piece, joined, spread


@dataclass(frozen=True, slots=True)
class Rail:
    """A queue pair, and the keys that its device and its peer's know the memory on both sides by."""

    queue: QueuePair
    lkey: int
    rkey: int


class Rails:
    def __init__(self, rails: Sequence[Rail], least: int = LEAST) -> None:
        """`least`: bytes below which a share is not worth a rail."""
        if not rails:
            raise ValueError("a transfer needs a rail")
        self._rails = tuple(rails)
        self._least = least

    def write(self, pieces: Sequence[Piece], timeout_s: float = WAIT_S) -> tuple[int, ...]:
        """WRITEs them, their keys replaced by each rail's; tickets for `wait`."""
        shares = spread(joined(pieces), len(self._rails), self._least)
        return tuple(
            rail.queue.write(
                [piece._replace(lkey=rail.lkey, rkey=rail.rkey) for piece in share], None, timeout_s
            )
            for rail, share in zip(self._rails, shares, strict=True)
        )

    def wait(self, tickets: Sequence[int], timeout_s: float = WAIT_S) -> None:
        """Until all of it has arrived. When a rail fails, the others are waited for first: nobody writes any more."""
        failed: ChannelError | None = None
        for rail, ticket in zip(self._rails, tickets, strict=True):
            try:
                rail.queue.wait(ticket, timeout_s)
            except ChannelError as error:
                failed = failed or error
        if failed is not None:
            raise failed
