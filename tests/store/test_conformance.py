"""What every store does alike: in the process that hosts it (memory), over rpc (remote), on a real server (redis)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from kserve_ext.store import Conflict, Store, Unavailable
from kserve_ext.store.behind import MAX_VALUE_BYTES
from tests.support.stores import Backing, backing

AWAY = ["remote", "redis"]


class Seen:
    """What a watch has said, and the state that follows from it."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.state: dict[str, bytes] = {}
        self.changes: list[tuple[str, bytes | None]] = []
        self.scans = 0
        self._news = asyncio.Event()
        store.watch(prefix, self._items, self._change)

    def _items(self, items: dict[str, bytes]) -> None:
        self.scans += 1
        self.state = dict(items)
        self._news.set()

    def _change(self, key: str, value: bytes | None) -> None:
        self.changes.append((key, value))
        if value is None:
            self.state.pop(key, None)
        else:
            self.state[key] = value
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(100):
            while not holds():
                self._news.clear()
                await self._news.wait()


class Bench:
    def __init__(self, behind: Backing) -> None:
        self.behind = behind
        self.stores: list[Store] = []

    def open(self) -> Store:
        self.stores.append(self.behind.open())
        return self.stores[-1]


@asynccontextmanager
async def on(kind: str, folder: Path) -> AsyncIterator[Bench]:
    bench = Bench(backing(kind, folder))
    await bench.behind.start()
    try:
        yield bench
    finally:
        for store in bench.stores:
            await store.close()
        await bench.behind.close()


Story = Callable[[Bench], Awaitable[None]]


@pytest.fixture(params=["memory", "remote", "redis"])
def tell(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Story], None]:
    return lambda story: asyncio.run(_told(request.param, tmp_path, story))


@pytest.fixture(params=AWAY)
def tell_away(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Story], None]:
    return lambda story: asyncio.run(_told(request.param, tmp_path, story))


async def _told(kind: str, folder: Path, story: Story) -> None:
    async with on(kind, folder) as bench:
        await story(bench)


def test_what_is_written_is_read_by_prefix_with_revisions_that_grow(tell: Callable[[Story], None]) -> None:
    async def story(bench: Bench) -> None:
        store = bench.open()
        assert await store.scan("") == {}
        first = await store.put_now([("a/1", b"x"), ("a/é", b"\0\xff"), ("ab/1", b"z")])
        second = await store.put_now([("a/1", b"y"), ("ab/1", None), ("ab/2", None)])
        found = await bench.open().scan("a/")
        assert {k: v for k, (v, _) in found.items()} == {"a/1": b"y", "a/é": b"\0\xff"}
        assert found["a/é"][1] < first < found["a/1"][1] <= second
        assert set(await store.scan("")) == {"a/1", "a/é"}
        assert await store.scan("a/2") == {}

    tell(story)


def test_a_condition_that_does_not_hold_writes_nothing(tell: Callable[[Story], None]) -> None:
    async def story(bench: Bench) -> None:
        store = bench.open()
        revision = await store.put_now([("a/1", b"x")], expect=[("a/1", 0)])
        with pytest.raises(Conflict, match=f"a/1: expected revision 0, found {revision}"):
            await store.put_now([("a/1", b"y"), ("a/2", b"y")], expect=[("a/2", 0), ("a/1", 0)])
        assert {k: v for k, (v, _) in (await store.scan("a/")).items()} == {"a/1": b"x"}
        assert await store.put_now([("a/1", None)], expect=[("a/1", revision), ("a/2", 0)]) > revision
        assert await store.put_now([("a/1", b"z")], expect=[("a/1", 0)])

    tell(story)


def test_of_many_that_write_under_one_condition_one_succeeds(tell: Callable[[Story], None]) -> None:
    async def story(bench: Bench) -> None:
        async def attempt(store: Store, name: str) -> bool:
            try:
                await store.put_now([("a/1", name.encode())], expect=[("a/1", 0)])
            except Conflict:
                return False
            return True

        done = await asyncio.gather(*(attempt(bench.open(), f"w{k}") for k in range(8)))
        winner = f"w{done.index(True)}".encode()
        assert sum(done) == 1
        assert (await bench.stores[0].scan("a/"))["a/1"][0] == winner

    tell(story)


def test_writes_behind_are_coalesced_in_order_and_whole(tell: Callable[[Story], None]) -> None:
    async def story(bench: Bench) -> None:
        store = bench.open()
        big = bytes(700_000)
        store.put([("big/1", big), ("big/2", big), ("big/3", big)])
        for k in range(3000):
            store.put([(f"k/{k % 1500}", str(k).encode())])
        store.put([("k/0", None), ("too/big", bytes(MAX_VALUE_BYTES + 1))])
        assert await store.flush(30)
        found = await store.scan("k/")
        assert {k: v for k, (v, _) in found.items()} == {
            f"k/{k}": str(1500 + k).encode() for k in range(1, 1500)
        }
        assert len(await store.scan("big/")) == 3
        assert await store.scan("too/") == {}
        revisions = [revision for _, revision in found.values()]
        assert max(revisions) - min(revisions) < 1500  # one write a key

    tell(story)


def test_an_awaited_write_takes_the_place_of_one_that_waits(tell: Callable[[Story], None]) -> None:
    async def story(bench: Bench) -> None:
        store = bench.open()
        store.put([("a/1", b"behind")])
        await store.put_now([("a/1", b"now")])
        assert await store.flush(5)
        assert (await store.scan("a/"))["a/1"][0] == b"now"

    tell(story)


def test_a_watch_hears_of_every_write_of_its_prefix_in_order(tell: Callable[[Story], None]) -> None:
    async def story(bench: Bench) -> None:
        writer, watcher = bench.open(), bench.open()
        seen = Seen(watcher, "a/")
        await seen.until(lambda: seen.scans == 1)
        for k in range(50):
            await writer.put_now([(f"b/{k}", b"x"), (f"a/{k}", b"y")])
        await writer.put_now([("a/0", None), ("a/z", b"last")])
        await seen.until(lambda: "a/z" in seen.state)
        assert seen.changes == [*((f"a/{k}", b"y") for k in range(50)), ("a/0", None), ("a/z", b"last")]
        assert seen.scans == 1

    tell(story)


def test_a_watch_of_a_part_of_a_segment(tell: Callable[[Story], None]) -> None:
    async def story(bench: Bench) -> None:
        store = bench.open()
        seen = Seen(store, "a/x/")
        await seen.until(lambda: seen.scans == 1)
        await store.put_now([("a/y/1", b"1"), ("a/x/1", b"1")])
        await seen.until(lambda: bool(seen.state))
        assert seen.changes == [("a/x/1", b"1")]

    tell(story)


def test_random_writes_of_two_lead_every_watcher_to_the_same_state(tell: Callable[[Story], None]) -> None:
    async def story(bench: Bench) -> None:
        rng = Random(7)
        one, two = bench.open(), bench.open()
        early = Seen(bench.open(), "a/")
        for k in range(200):
            store = rng.choice([one, two])
            items = [
                (f"a/{rng.randrange(12)}", rng.choice([None, str(k).encode()]))
                for _ in range(rng.randrange(1, 4))
            ]
            if rng.random() < 0.5:
                store.put(items)
            else:
                await store.put_now(items)
            if k == 100:
                late = Seen(bench.open(), "a/")
        assert await one.flush(10)
        assert await two.flush(10)
        await one.put_now([("a/end", b"")])
        for seen in (early, late):
            await seen.until(lambda seen=seen: "a/end" in seen.state)  # type: ignore[misc]
            assert seen.state == {k: v for k, (v, _) in (await one.scan("a/")).items()}

    tell(story)


def test_over_a_restart_nothing_acknowledged_is_lost_and_what_waits_is_written(
    tell_away: Callable[[Story], None],
) -> None:
    async def story(bench: Bench) -> None:
        store = bench.open()
        seen = Seen(store, "a/")
        await store.put_now([("a/1", b"kept")])
        await seen.until(lambda: "a/1" in seen.state)
        await bench.behind.stop()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            await store.scan("a/")
        with pytest.raises(Unavailable):
            await store.put_now([("a/1", b"not kept")])
        store.put([("a/2", b"first")])
        store.put([("a/2", b"behind")])
        assert not await store.flush(0.01)
        await bench.behind.start()
        await seen.until(lambda: seen.state == {"a/1": b"kept", "a/2": b"behind"})
        assert ("a/2", b"first") not in seen.changes

    tell_away(story)


def test_a_store_that_was_emptied_takes_nothing_from_who_watches_until_its_owner_has_restated(
    tell_away: Callable[[Story], None],
) -> None:
    async def story(bench: Bench) -> None:
        owner, other, watcher = bench.open(), bench.open(), bench.open()
        own: dict[str, bytes | None] = {"a/1": b"1", "a/2": b"2"}
        seen, others = Seen(watcher, "a/"), Seen(watcher, "o/")
        await owner.put_now([*own.items(), ("a/gone", b"x")])
        await other.put_now([("o/1", b"o")])
        await seen.until(lambda: "a/gone" in seen.state)
        await others.until(lambda: bool(others.state))
        other.restate(lambda: [("o/1", b"o")])

        await bench.behind.empty()
        await other.put_now([("o/2", b"o")])  # the first to find out
        await others.until(lambda: others.state == {"o/1": b"o", "o/2": b"o"})
        assert {"a/1", "a/2", "a/gone"} <= set(seen.state)

        owner.restate(lambda: own.items(), ["a/"])
        own["a/3"] = b"3"
        owner.put([("a/3", b"3")])
        await seen.until(lambda: seen.state == {"a/1": b"1", "a/2": b"2", "a/3": b"3"})
        assert {k: v for k, (v, _) in (await other.scan("a/")).items()} == own
        assert {k: v for k, (v, _) in (await other.scan("o/")).items()} == {"o/1": b"o", "o/2": b"o"}

    tell_away(story)
