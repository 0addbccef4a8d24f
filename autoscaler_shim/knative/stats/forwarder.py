"""Brings each statistics message to the replica that holds its bucket: here, or over a websocket to another.

As pkg/autoscaler/statforwarder, and understood by it: the holder's pod is tried by its address, then by way of the
bucket's Service. Better in three points: messages for one replica travel together, what waits is bounded in number
and age, and a slow replica keeps nobody else waiting. Statistics are worth little when they are old.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

import aiohttp

from kserve_ext.core.knative.buckets import Buckets
from kserve_ext.rpc.mutual_tls import Identity
from kserve_ext.rpc.websocket import connect
from kserve_ext.wire.stats import Stat, StatMessage, encode

log = logging.getLogger(__name__)

ESTABLISH_S = 0.5
AGAIN_S = 0.5
MOST_WAITING = 10_000
MOST_AGE_S = 15.0
#: Two replicas that each take the other for the holder pass a message to and fro, but no longer than this.
MOST_JOURNEY_S = 60.0
MOST_IN_ONE = 1000
PING_S = 3.3

Revision = tuple[str, str]  # namespace and name


class Remote:
    """The way to one holder. The first address that answers is used until it breaks."""

    def __init__(self, bucket: str, addresses: Sequence[str], identity: Identity | None = None) -> None:
        self.bucket = bucket
        self.addresses = tuple(addresses)
        self.dropped = 0
        self._identity = identity
        self._waiting: deque[tuple[float, StatMessage]] = deque()
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def send(self, message: StatMessage) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append((asyncio.get_running_loop().time(), message))
        self._wake.set()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def waiting(self) -> list[StatMessage]:
        return [message for _, message in self._waiting]

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                await self._wake.wait()
                for address in self.addresses:
                    try:
                        await self._serve(session, address)
                    except (aiohttp.ClientError, TimeoutError, OSError) as error:
                        log.warning(
                            "bucket %s: %s: %s", self.bucket, address, str(error) or type(error).__name__
                        )
                self._forget_old()
                await asyncio.sleep(AGAIN_S)

    async def _serve(self, session: aiohttp.ClientSession, address: str) -> None:
        """One connection, until it breaks."""
        async with asyncio.timeout(ESTABLISH_S):
            ws = await connect(session, address, self._identity, heartbeat=2 * PING_S, compress=0)
        log.info("bucket %s: statistics go to %s", self.bucket, address)
        reading = asyncio.ensure_future(_until_closed(ws))
        try:
            while not reading.done():
                await self._wake.wait()
                self._forget_old()
                batch = [message for _, message in self._waiting][:MOST_IN_ONE]
                if batch and not reading.done():
                    await ws.send_bytes(encode(batch))
                    for _ in batch:
                        self._waiting.popleft()
                if not self._waiting:
                    self._wake.clear()
                    waking = asyncio.ensure_future(self._wake.wait())
                    try:
                        await asyncio.wait((waking, reading), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        waking.cancel()
        finally:
            reading.cancel()
            await ws.close()

    def _forget_old(self) -> None:
        oldest = asyncio.get_running_loop().time() - MOST_AGE_S
        while self._waiting and self._waiting[0][0] < oldest:
            self._waiting.popleft()
            self.dropped += 1


async def _until_closed(ws: aiohttp.ClientWebSocketResponse) -> None:
    """Reads, so that pings are answered and the end is noticed."""
    async for _ in ws:
        pass


class Forwarder:
    def __init__(
        self, buckets: Buckets, accept: Callable[[StatMessage], None], identity: Identity | None = None
    ) -> None:
        """`identity`: for mutual TLS."""
        self._identity = identity
        self._buckets = buckets
        self._accept = accept
        #: by bucket: the way to its holder; None: it is held here
        self._ways: dict[str, Remote | None] = {}
        self._lost = 0
        #: for buckets of which no holder is known yet
        self._early: deque[tuple[float, StatMessage]] = deque(maxlen=MOST_WAITING)

    def holds(self, bucket: str) -> bool:
        return bucket in self._ways and self._ways[bucket] is None

    @property
    def dropped(self) -> int:
        return self._lost + sum(way.dropped for way in self._ways.values() if way is not None)

    def send(self, messages: Sequence[StatMessage]) -> None:
        """Messages carry the time at which the first replica got them."""
        too_old = time.time() - MOST_JOURNEY_S
        for message in messages:
            bucket = self._buckets.owner(f"{message.namespace}/{message.name}")
            if bucket not in self._ways:
                self._early.append((asyncio.get_running_loop().time(), message))
            elif (way := self._ways[bucket]) is None:
                self._accept(message)
            elif message.stat.timestamp < too_old:
                self._lost += 1
            else:
                way.send(message)

    def hung_up(self, brought: Mapping[str, Collection[Revision]]) -> None:
        """Activators whose connection to here has ended: whoever holds their revisions' buckets elsewhere is told.

        Said as what it means, so that Knative's own understand it: nothing of these revisions is there any more.
        """
        now = int(time.time())
        for pod, revisions in brought.items():
            self.send(
                [
                    StatMessage(namespace, name, Stat(pod, timestamp=now))
                    for namespace, name in revisions
                    if not self.holds(self._buckets.owner(f"{namespace}/{name}"))
                ]
            )

    async def held_here(self, bucket: str) -> None:
        if not self.holds(bucket):
            await self._change(bucket, None)

    async def held_by(self, bucket: str, addresses: Sequence[str]) -> None:
        way = self._ways.get(bucket)
        if way is None or way.addresses != tuple(addresses):
            await self._change(bucket, Remote(bucket, addresses, self._identity))

    async def held_by_nobody(self, bucket: str) -> None:
        """Given back, and no other holder is known: what comes waits for one."""
        if self.holds(bucket):
            del self._ways[bucket]

    async def stop(self) -> None:
        for way in self._ways.values():
            if way is not None:
                await way.stop()
        self._ways.clear()

    async def _change(self, bucket: str, way: Remote | None) -> None:
        """What waited for the former holder goes to the new one."""
        former = self._ways.get(bucket)
        self._ways[bucket] = way
        waiting: list[StatMessage] = []
        if former is not None:
            waiting = former.waiting
            self._lost += former.dropped
            await former.stop()
        oldest = asyncio.get_running_loop().time() - MOST_AGE_S
        waiting += [message for at, message in self._early if at >= oldest]
        self._early.clear()
        self.send(waiting)
