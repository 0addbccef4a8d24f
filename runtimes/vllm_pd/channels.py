"""Decode's channels to prefill instances: dialled ahead of requests, one per peer however many requests want it.

Home tells which prefill instances there are, and again when that changes; some of them are connected at any time,
and whichever a lease names besides (core/kv_links.py says which). A prefill instance says at GET /galaxy/channel
where its channels listen. Dialling blocks, so it happens on a thread. Why a peer's blocks are of no use here is
logged once for each cause: every instance of a revision has the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from kserve_ext.core.kv_links import Dial, Instruction, Key, Links
from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.cuda import driver, mover
from runtimes.transport.handshake import Identity
from runtimes.transport.listener import dial
from runtimes.transport.pair import WINDOW, Channel
from runtimes.vllm_pd import metrics
from runtimes.vllm_pd.home_client import Lease, Leases, NoPrefill
from runtimes.vllm_pd.keeper import Attach, Keeper, Kept

PAIRS = 4
MOST = 64
_LOOKUP_S = 2.0
_MOST_FACTS = 1 << 20  # bytes, of whoever listens there
_ASK_AGAIN_S = 1.0


class Channels(Keeper):
    def __init__(
        self,
        key: bytes,
        who: Identity,
        rungs: Sequence[Rung],
        attach: Attach,
        open_on: Callable[[Channel], int],
        changed: Callable[[], None] = lambda: None,
        *,
        pairs: int = PAIRS,
        most: int = MOST,
    ) -> None:
        links = Links(who.name, pairs, most, random.Random(who.generation).random)
        super().__init__(links, attach, open_on, changed)
        self._key = key
        self._who = who
        self._rungs = tuple(rungs)
        self._dials: dict[int, asyncio.Task[Channel]] = {}  # by number
        self._errors: dict[Key, ChannelError] = {}  # why the last dial has failed
        self._logged: set[str] = set()
        self._following: asyncio.Task[Any] | None = None

    def follow(self, leases: Leases) -> None:
        """From now on the group's prefill instances are dialled without being asked for."""
        self._following = self._task(self._follow(leases))

    def unfollow(self) -> None:
        """What stands goes on standing."""
        if self._following is not None:
            self._following.cancel()

    async def get(self, lease: Lease) -> tuple[Channel, bool]:
        """The channel, and whether it had to be waited for. Raises ChannelError, or NoPrefill."""
        key = Key(lease.instance)
        now = time.monotonic() if self._stands(key) else self._now()
        refusal, out = self._links.want(key, lease.addr, lease.generation, now)
        self._carry(out)
        if refusal is not None:
            if refusal.reason == "limit":
                raise NoPrefill(refusal.detail, "channel-limit")
            error = self._errors[key]
            raise ChannelError(error.reason, error.detail)
        number = self._links.known[key].number
        kept = self._kept.get(number)
        if kept is not None:
            return kept.channel, False
        return await asyncio.shield(self._dials[number]), True

    # --- dials

    def _carry(self, instructions: Sequence[Instruction]) -> None:
        for i in instructions:
            if isinstance(i, Dial):
                self._dial(i)
        super()._carry(instructions)

    def _dial(self, i: Dial) -> None:
        task = self._dials[i.number] = self._loop.create_task(self._make(i))
        task.add_done_callback(_look_at)

    async def _make(self, i: Dial) -> Channel:
        """Dials and registers, whether or not somebody still waits for it."""
        there = _There()
        try:
            kept = await asyncio.to_thread(self._stand, i, there, self._errors.get(i.key))
        except ChannelError as error:
            self._failed(i, there.generation, error)
            raise
        except Exception as error:  # without an end, the link would be dialled for ever
            failure = ChannelError("unreachable", f"{i.addr}: {error!r}")
            self._failed(i, there.generation, failure)
            raise failure from error
        finally:
            del self._dials[i.number]
        channel = kept.channel
        if self._closed:
            channel.close()
            raise ChannelError("closed", "this instance ends")
        metrics.DIAL_SECONDS.observe(kept.dial_s)
        self._errors.pop(i.key, None)
        self._add(kept, i.number)
        self._carry(self._links.stood(i.key, i.number, channel.peer.generation, self._now()))
        if channel.lost is not None:
            raise channel.lost
        return channel

    def _failed(self, i: Dial, generation: int, error: ChannelError) -> None:
        metrics.CHANNEL_FAILURES.labels(error.reason).inc()
        self._errors = {key: known for key, known in self._errors.items() if key in self._links.known}
        self._errors[i.key] = error
        if error.reason == "incompatible" and error.detail not in self._logged:
            self._logged.add(error.detail)
            print(f"warning: no KV transfer from {i.key.peer}: {error}", file=sys.stderr, flush=True)
        out = self._links.failed(i.key, i.number, error.reason, error.detail, generation, self._now())
        self._carry(out)
        self._tell_soon()

    def _stand(self, i: Dial, there: _There, last: ChannelError | None) -> Kept:
        """On a thread: where the engine's cache is known, the first channel on a device registers all of it."""
        began = time.monotonic()
        channel = self._connect(i, there, last)
        kept = Kept(i.key, channel, self._ended, time.monotonic() - began)
        try:
            self._attach(channel, kept.ear.wrap)
        except BaseException:
            channel.close()
            raise
        return kept

    def _connect(self, i: Dial, there: _There, last: ChannelError | None) -> Channel:
        """Who has refused in this generation is not asked again."""
        facts = lookup(i.addr)
        there.generation = int(facts.get("generation") or 0)
        if last is not None and there.generation == i.refused_by:
            raise last
        window = mover.WINDOW if driver.present() else WINDOW
        return dial(
            facts["channel"],
            self._key,
            self._who,
            peer_generation=i.generation,
            rungs=self._rungs,
            window=window,
        )

    # --- who there is

    async def _follow(self, leases: Leases) -> None:
        tag = ""
        while True:
            try:
                tag, peers = await leases.peers(tag)
            except NoPrefill:
                tag = ""
            if not tag:
                await asyncio.sleep(_ASK_AGAIN_S)
                continue
            self._carry(self._links.peers(peers, self._now()))
            self._tell_soon()


class _There:
    """What a dial has found out by the time that it fails."""

    generation = 0


def _look_at(task: asyncio.Task[Channel]) -> None:
    """The error of a dial that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()


def lookup(http_addr: str, timeout_s: float = _LOOKUP_S) -> dict[str, Any]:
    """Where the channel listener of the prefill instance at `http_addr` is, and who it is. Never through a proxy."""
    try:
        with contextlib.closing(http.client.HTTPConnection(http_addr, timeout=timeout_s)) as connection:
            connection.request("GET", "/galaxy/channel")
            with connection.getresponse() as answer:
                facts = json.loads(answer.read(_MOST_FACTS))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ChannelError("unreachable", f"{http_addr}: {error}") from error
    if answer.status != 200 or not isinstance(facts, dict) or not facts.get("channel"):
        raise ChannelError("unreachable", f"{http_addr} has no channel listener: not a prefill instance")
    return facts


def generation() -> int:
    """Of an instance that nobody has given one: the time of its start, in nanoseconds."""
    return time.time_ns()
