"""Prefill's channels: those that decode instances have dialled.

Whoever has proved itself is taken, up to a bound; one that is silent is asked and given up here, too, so that nothing
is held for a decode instance whose machine or network has gone without a word.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from kserve_ext.core.kv_links import Key, Links
from runtimes.transport.handshake import Identity
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.keeper import Attach, Keeper, Kept


class Accepted(Keeper):
    def __init__(
        self,
        who: Identity,
        attach: Attach,
        open_on: Callable[[Channel], int],
        changed: Callable[[], None] = lambda: None,
        *,
        most: int,
    ) -> None:
        links = Links(who.name, 0, most, random.Random(who.generation).random)
        super().__init__(links, attach, open_on, changed)

    def take(self, channel: Channel) -> None:
        """From the listener's threads, before anything is read."""
        kept = Kept(Key(channel.peer.name), channel, self._ended)
        self._attach(channel, kept.ear.wrap)
        self._loop.call_soon_threadsafe(self._take, kept)

    def _take(self, kept: Kept) -> None:
        number, out = self._links.accepted(kept.key, kept.channel.peer.generation, self._now())
        self._add(kept, number)
        self._carry(out)
        if self._closed:
            kept.channel.close()
