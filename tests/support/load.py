"""Load from asyncio clients on loopback, with an account of every request: what was sent is what is counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp


@dataclass
class Tally:
    """Outcomes of all requests sent; `sent` equals the sum of the others when the load has ended."""

    sent: int = 0
    ok: int = 0
    #: refusals by status
    refused: Counter[int] = field(default_factory=Counter)
    #: connections that ended before a complete answer
    reset: int = 0
    reasons: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    #: most requests that one instance has seen at once
    peak: int = 0

    @property
    def accounted(self) -> int:
        return self.ok + self.refused.total() + self.reset

    def __str__(self) -> str:
        return (
            f"{self.sent} sent, {self.ok} ok, refused {dict(self.refused)}, {self.reset} reset, "
            f"first reasons {self.reasons[:3]}"
        )


async def one(session: aiohttp.ClientSession, url: str, host: str, tally: Tally, body: bytes = b"") -> None:
    """One request, counted under exactly one outcome."""
    tally.sent += 1
    try:
        async with session.post(url, headers={"Host": host}, data=body) as response:
            text = await response.read()
            if response.status == 200:
                answer = await response.json()
                tally.ok += 1
                tally.pids.add(answer["pid"])
                tally.peak = max(tally.peak, answer["peak"])
            else:
                tally.refused[response.status] += 1
                tally.reasons.append(f"{response.status} {text[:300]!r}")
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        tally.reset += 1
        tally.reasons.append(repr(error))


def session(timeout_s: float = 60) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=timeout_s)
    )


async def volley(urls: Sequence[str], host: str, count: int, timeout_s: float = 60) -> Tally:
    """`count` requests at once, in turn over the URLs."""
    tally = Tally()
    async with session(timeout_s) as client:
        await asyncio.gather(*(one(client, urls[k % len(urls)], host, tally) for k in range(count)))
    return tally


async def steady(
    urls: Sequence[str],
    host: str,
    clients: int,
    until: Callable[[], bool],
    tallies: dict[str, Tally] | None = None,
) -> dict[str, Tally]:
    """Closed-loop clients, each on one URL, until `until()`; the tally of each URL, which `tallies` has meanwhile."""
    tallies = {} if tallies is None else tallies
    tallies.update({url: Tally() for url in urls})

    async def client(url: str) -> None:
        async with session() as own:
            while not until():
                await one(own, url, host, tallies[url])
                if tallies[url].reset:
                    await asyncio.sleep(0.02)  # a client that reconnects, not one that spins

    await asyncio.gather(*(client(urls[k % len(urls)]) for k in range(clients)))
    return tallies
