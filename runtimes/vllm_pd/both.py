"""Both halves of transfers on one channel: this engine receives blocks of some, and sends those of others.

What the peer says as a receiver is for our sending half, what it says as a sender for our landing half.
"""

from __future__ import annotations

from runtimes.transport.channel import ChannelError, Landing, Receiver
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.keepalive import Wrap, plain
from runtimes.vllm_pd.landing import Door, Landings
from runtimes.vllm_pd.pushing import Pushes


class Ends:
    """Of one channel."""

    def __init__(self, door: Door, pushes: Pushes) -> None:
        self._door = door
        self._pushes = pushes

    def message(self, channel: object, body: bytes) -> None:
        assert isinstance(channel, Channel)
        job = jobs.read(body)
        if isinstance(job, jobs.FromReceiver):
            self._pushes.take(channel, job)
        else:
            self._door.take(job)

    def lost(self, channel: object, error: ChannelError) -> None:
        self._door.lost(channel, error)
        self._pushes.lost(channel, error)


class BothWays:
    """The two halves of an engine, as whoever keeps its channels sees them."""

    def __init__(self, landings: Landings, pushes: Pushes) -> None:
        self.landings = landings
        self.pushes = pushes

    def attach_dialled(self, channel: Channel, wrap: Wrap = plain) -> None:
        """Decode's: most blocks come here."""
        self.pushes.join(channel)
        self.landings.attach(channel, self._wrap(channel, wrap))

    def attach_accepted(self, channel: Channel, wrap: Wrap = plain) -> None:
        """Prefill's: most blocks go out."""
        self.pushes.attach(channel, self._wrap(channel, wrap))

    def open_on(self, channel: Channel) -> int:
        return self.landings.open_on(channel) + self.pushes.open_on(channel)

    def _wrap(self, channel: Channel, wrap: Wrap) -> Wrap:
        door = self.landings.door(channel)

        def wrapped(receiver: Receiver, landing: Landing | None) -> tuple[Receiver, Landing | None]:
            return wrap(Ends(door, self.pushes), door)

        return wrapped
