"""What only a server can do: fall back behind what it has acknowledged, forget its scripts, hold a long history."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kserve_ext.store import Conflict
from kserve_ext.store.location import Location
from kserve_ext.store.redis import HISTORY, HISTORY_BYTES, RedisStore
from tests.store.test_conformance import Seen
from tests.support.redis_server import RedisServer

WHERE = "{mine}"


def play(folder: Path, story: Callable[[RedisServer, RedisStore], Awaitable[None]]) -> None:
    async def main(server: RedisServer) -> None:
        store = RedisStore(Location.of(f"{server.url}?namespace=mine", b""))
        try:
            await story(server, store)
        finally:
            await store.close()

    with RedisServer(folder) as server:
        asyncio.run(main(server))


def test_a_copy_that_lags_behind_is_told_what_it_lacks_and_conditions_of_before_do_not_hold(
    tmp_path: Path,
) -> None:
    async def story(server: RedisServer, store: RedisStore) -> None:
        store.restate(lambda: [("a/1", b"1"), ("a/2", b"2")], ["a/"])
        first = await store.put_now([("a/1", b"1")])
        seen = Seen(store, "a/")
        await seen.until(lambda: seen.scans == 1)
        second = await store.put_now([("a/2", b"2")])
        for command in (
            f"SET {WHERE}:revision {first}",
            f"HDEL {WHERE}:values a/2",
            f"ZREM {WHERE}:index a/2",
            f"HSET {WHERE}:counts a 1",
            f"SET {WHERE}:writer:{store._writer} 1",
        ):
            server.command(command)
        await store.put_now([("b/1", b"x")])  # takes the number that a/2 had
        assert await store.flush(10)
        assert {k: v for k, (v, _) in (await store.scan("a/")).items()} == {"a/1": b"1", "a/2": b"2"}
        with pytest.raises(Conflict):
            await store.put_now([("b/1", b"y")], expect=[("b/1", second)])
        await store.put_now([("a/3", b"3")])
        await seen.until(lambda: "a/3" in seen.state)
        assert seen.state == {"a/1": b"1", "a/2": b"2", "a/3": b"3"}

    play(tmp_path, story)


def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(tmp_path: Path) -> None:
    async def story(server: RedisServer, store: RedisStore) -> None:
        await store.put_now([("a/1", b"1")])
        server.command("SCRIPT FLUSH")
        await store.put_now([("a/1", b"2")])
        assert (await store.scan("a/"))["a/1"][0] == b"2"

    play(tmp_path, story)


def test_the_history_is_bounded_and_who_missed_some_of_it_scans(tmp_path: Path) -> None:
    async def story(server: RedisServer, store: RedisStore) -> None:
        seen = Seen(store, "a/")
        await seen.until(lambda: seen.scans == 1)
        for k in range(3):
            await store.put_now([(f"a/{k}", b"1")])
        await seen.until(lambda: "a/2" in seen.state)
        server.command("XTRIM", f"{WHERE}:changes:a", "MAXLEN", "0")
        server.command("HINCRBY", f"{WHERE}:counts", "a", "7")  # seven were written and are gone
        await store.put_now([("a/9", b"1"), ("a/0", None)])
        await seen.until(lambda: seen.scans == 2)
        assert set(seen.state) == {"a/1", "a/2", "a/9"}
        store.put([(f"a/{k}", b"1") for k in range(3 * HISTORY)])
        assert await store.flush(60)
        length = int(server.command("XLEN", f"{WHERE}:changes:a").strip().lstrip(b":"))
        assert HISTORY <= length < 1.1 * HISTORY

    play(tmp_path, story)


def test_what_is_kept_of_changes_is_bounded_in_bytes_and_a_key_that_nobody_can_watch_has_none(
    tmp_path: Path,
) -> None:
    async def story(server: RedisServer, store: RedisStore) -> None:
        seen = Seen(store, "a/")
        await seen.until(lambda: seen.scans == 1)
        large = b"x" * (HISTORY_BYTES // 20)
        for k in range(40):
            await store.put_now([("a/large", large), ("view", b"%d" % k)])
        await store.put_now([("a/last", b"1")])
        await seen.until(lambda: "a/last" in seen.state)
        assert seen.state == {"a/large": large, "a/last": b"1"}
        length = int(server.command("XLEN", f"{WHERE}:changes:a").strip().lstrip(b":"))
        assert length <= 21
        assert server.command("EXISTS", f"{WHERE}:changes:view").strip() == b":0"
        await store.put_now([("view", None)])
        assert await store.scan("view") == {}

    play(tmp_path, story)


def test_a_call_that_is_cancelled_ends_whatever_it_is_at(tmp_path: Path) -> None:
    """Who was to end would go on else, and its process with it."""

    async def story(server: RedisServer, store: RedisStore) -> None:
        await store.scan("a/")
        ended, done = 0, False
        while not done:
            call = asyncio.ensure_future(store.scan("a/"))
            for _ in range(ended):  # a turn of the loop further each time
                await asyncio.sleep(0)
            done = not call.cancel()
            await asyncio.wait({call})
            assert done or call.cancelled(), f"in turn {ended} the cancellation was forgotten"
            ended += 1

    play(tmp_path, story)
