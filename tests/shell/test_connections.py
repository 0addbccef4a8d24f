"""The connection cache: most recent first, bounded, nothing closed or stale is handed out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from activator_replacement.connections import ConnectionCache, Upstream
from tests.support.dataplane import instance, run


class Clock:
    """Of the loop, only what the cache uses without opening connections."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now


class Kept:
    def __init__(self, addr: str = "a:1") -> None:
        self.addr = addr
        self.idle_since = 0.0
        self.closed = False

    def usable(self) -> bool:
        return not self.closed

    def close(self) -> None:
        self.closed = True


def cache(clock: Any, **settings: Any) -> ConnectionCache:
    return ConnectionCache(clock, lambda addr: asyncio.Protocol(), **settings)


def test_most_recent_first_and_by_address() -> None:
    kept = cache(Clock())
    one, two, other = Kept(), Kept(), Kept("b:2")
    for upstream in (one, two, other):
        kept.give(upstream)
    assert kept.take("a:1") is two
    assert kept.take("a:1") is one
    assert kept.take("a:1") is None
    assert kept.take("b:2") is other
    assert (kept.idle_count, kept.reused) == (0, 3)


def test_closed_ones_are_skipped() -> None:
    kept = cache(Clock())
    good, bad = Kept(), Kept()
    kept.give(good)
    kept.give(bad)
    bad.closed = True
    assert kept.take("a:1") is good
    assert kept.idle_count == 0


def test_lost_ones_are_forgotten() -> None:
    kept = cache(Clock())
    one = Kept()
    kept.give(one)
    kept.lost(one)
    kept.lost(one)
    kept.lost(Kept("b:2"))
    assert kept.take("a:1") is None
    assert kept.idle_count == 0


def test_stale_ones_are_closed_when_taken_and_when_swept() -> None:
    clock = Clock()
    kept = cache(clock, idle_s=4.0)
    old, fresh = Kept(), Kept()
    kept.give(old)
    clock.now += 3
    kept.give(fresh)
    clock.now += 2
    kept.sweep()
    assert [old.closed, fresh.closed] == [True, False]
    assert kept.idle_count == 1
    clock.now += 3
    assert kept.take("a:1") is None
    assert fresh.closed
    assert kept.idle_count == 0


@pytest.mark.parametrize("bound", [{"per_addr": 2}, {"total": 2}])
def test_bounded(bound: dict[str, int]) -> None:
    kept = cache(Clock(), **bound)
    all_of_them = [Kept() for _ in range(5)]
    for upstream in all_of_them:
        kept.give(upstream)
    assert [upstream.closed for upstream in all_of_them] == [False, False, True, True, True]
    assert kept.idle_count == 2


class Asked:
    """Waits for a connection."""

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted
        self.told: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def connected(self, upstream: Upstream) -> bool:
        self.told.set_result(upstream)
        return self.wanted

    def not_connected(self, reason: str) -> None:
        self.told.set_result(reason)


class Opened(asyncio.Protocol, Kept):
    def __init__(self, addr: str) -> None:
        Kept.__init__(self, addr)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def close(self) -> None:
        self.closed = True
        self.transport.close()


def test_opens_keeps_what_nobody_wants_and_says_why_it_can_not() -> None:
    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        kept = ConnectionCache(asyncio.get_running_loop(), Opened)
        async with instance(quiet) as addr:
            asked = Asked()
            kept.open(addr, asked)
            upstream = await asked.told
            assert isinstance(upstream, Opened)
            upstream.close()
            unwanted = Asked(wanted=False)
            kept.open(addr, unwanted)
            await unwanted.told
            assert kept.take(addr) is unwanted.told.result()
            assert kept.opened == 2
            kept.close()
        for bad, why in ((addr, "refused"), ("nonsense", "refused"), ("127.0.0.1:0", "refused")):
            asked = Asked()
            kept.open(bad, asked)
            assert why in str(await asked.told)

    run(test())
