"""Decode's cache of channels to prefill instances: one per peer, dialled once however many requests want it.

A prefill instance says at GET /galaxy/channel where its channels listen. A lost channel is forgotten, and the
next request dials again. Dialling blocks, so it happens on a thread. Why a peer's blocks are of no use here is logged
once for each cause: every instance of a revision has the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import time
from collections.abc import Callable, Sequence

from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.listener import dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.home_client import Lease

_LOOKUP_S = 2.0


class Channels:
    def __init__(
        self, key: bytes, who: Identity, rungs: Sequence[Rung], made: Callable[[Channel], None]
    ) -> None:
        self._key = key
        self._who = who
        self._rungs = tuple(rungs)
        self._made = made
        self._by_addr: dict[str, Channel] = {}
        self._dialling: dict[str, asyncio.Task[Channel]] = {}
        self._logged: set[str] = set()
        self._closed = False

    async def get(self, lease: Lease) -> tuple[Channel, bool]:
        """The channel, and whether it had to be made. Raises ChannelError."""
        channel = self._by_addr.get(lease.addr)
        if channel is not None and channel.lost is None:
            if lease.generation in (0, channel.peer.generation):
                return channel, False
            channel.close()
        task = self._dialling.get(lease.addr)
        if task is None:
            task = self._dialling[lease.addr] = asyncio.create_task(self._make(lease))
            task.add_done_callback(_look_at)
        return await asyncio.shield(task), True

    def close(self) -> None:
        """A channel that is being dialled is closed as soon as it stands."""
        self._closed = True
        for channel in self._by_addr.values():
            channel.close()
        self._by_addr.clear()

    async def _make(self, lease: Lease) -> Channel:
        """Dials and registers, whether or not somebody still waits for it."""
        try:
            channel = await asyncio.to_thread(self._dial, lease)
        except ChannelError as error:
            self._log_once(lease, error)
            raise
        finally:
            del self._dialling[lease.addr]
        if self._closed:
            channel.close()
            raise ChannelError("closed", "this instance ends")
        self._by_addr[lease.addr] = channel
        self._made(channel)
        return channel

    def _log_once(self, lease: Lease, error: ChannelError) -> None:
        if error.reason == "incompatible" and error.detail not in self._logged:
            self._logged.add(error.detail)
            print(f"warning: no KV transfer from {lease.instance}: {error}", file=sys.stderr, flush=True)

    def _dial(self, lease: Lease) -> Channel:
        addr = lookup(lease.addr)
        return dial(addr, self._key, self._who, peer_generation=lease.generation, rungs=self._rungs)


def _look_at(task: asyncio.Task[Channel]) -> None:
    """The error of a dial that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()


def lookup(http_addr: str, timeout_s: float = _LOOKUP_S) -> str:
    """The address of the channel listener of the prefill instance at `http_addr`. Never through a proxy."""
    try:
        with contextlib.closing(http.client.HTTPConnection(http_addr, timeout=timeout_s)) as connection:
            connection.request("GET", "/galaxy/channel")
            answer = connection.getresponse()
            facts = json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ChannelError("unreachable", f"{http_addr}: {error}") from error
    if answer.status != 200 or not facts.get("channel"):
        raise ChannelError("unreachable", f"{http_addr} has no channel listener: not a prefill instance")
    return str(facts["channel"])


def generation() -> int:
    """Of an instance that nobody has given one: the time of its start, in nanoseconds."""
    return time.time_ns()
