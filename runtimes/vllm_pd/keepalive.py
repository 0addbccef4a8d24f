"""Whether the other end of a channel still lives: questions and answers between its messages, on either side.

An Ear stands between a channel and its owner. Everything that comes counts as a sign of life; a question is answered
at once, by the thread that reads, however busy the engine is. When to ask and when to give up is decided elsewhere
(core/kv_links.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final, cast

from runtimes.transport.channel import ChannelError, Frame, Landing, Pages, PieceLanding, Receiver
from runtimes.transport.pair import Channel

#: No job is encoded as one byte (jobs.py).
PING: Final = b"?"
ALIVE: Final = b"!"

#: What a channel is started with, made of what its owner wants it to be started with.
Wrap = Callable[[Receiver, Landing | None], tuple[Receiver, Landing | None]]


def plain(receiver: Receiver, landing: Landing | None) -> tuple[Receiver, Landing | None]:
    """Nobody listens for signs of life."""
    return receiver, landing


class Ear:
    """Of one channel; `lost` is called once, after the owner has been told."""

    def __init__(
        self, lost: Callable[[ChannelError], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lost = lost
        self._clock = clock
        self._receiver: Receiver
        self._landing: Landing
        self.heard_at = clock()

    def wrap(self, receiver: Receiver, landing: Landing | None) -> tuple[Receiver, Landing | None]:
        self._receiver = receiver
        if landing is None:
            return self, None
        self._landing = landing
        return self, self

    def message(self, channel: object, body: bytes) -> None:
        self.heard_at = self._clock()
        if body == PING:
            assert isinstance(channel, Channel)
            channel.send(ALIVE)
        elif body != ALIVE:
            self._receiver.message(channel, body)

    def lost(self, channel: object, error: ChannelError) -> None:
        self._receiver.lost(channel, error)
        self._lost(error)

    def window(self, frame: Frame) -> memoryview | Pages | None:
        self.heard_at = self._clock()
        return self._landing.window(frame)

    def landed(self, frame: Frame, broken: list[int]) -> None:
        self._landing.landed(frame, broken)

    def expects(self, frame: Frame, targets: Sequence[int]) -> bool:
        self.heard_at = self._clock()
        return cast(PieceLanding, self._landing).expects(frame, targets)

    def arrived(self, frame: Frame, targets: Sequence[int], broken: Sequence[int]) -> None:
        cast(PieceLanding, self._landing).arrived(frame, targets, broken)

    def done(self, transfer: int, blocks: int) -> None:
        self.heard_at = self._clock()
        self._landing.done(transfer, blocks)


def ask(channel: Channel) -> None:
    """Never waits for the answer. A channel that is lost tells its owner itself."""
    with contextlib.suppress(ChannelError):
        channel.send(PING)
