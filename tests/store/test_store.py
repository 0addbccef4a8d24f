"""The embedded store: revisions, conditions, history; its journal over kills; write-behind and watches."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.rpc import Rpc
from kserve_ext.store import Conflict, Unavailable, remote
from kserve_ext.store.journal import Journal
from kserve_ext.store.memory import Memory
from kserve_ext.store.remote import RemoteStore
from kserve_ext.store.server import StoreServer

KEY = b"k" * 32
writes = st.lists(
    st.tuples(st.sampled_from(["a/1", "a/2", "b/1"]), st.one_of(st.none(), st.binary(max_size=4))),
    max_size=30,
)


@given(writes, st.integers(0, 30), st.sampled_from(["", "a/", "b/"]))
def test_scan_then_changes_equals_the_end_state(
    all_writes: list[tuple[str, bytes | None]], cut: int, prefix: str
) -> None:
    memory = Memory()
    memory.put(all_writes[:cut])
    seen = {k: v for k, v, _ in memory.scan(prefix)}
    after = memory.revision
    memory.put(all_writes[cut:])
    changes = memory.changes(prefix, after)
    assert changes is not None
    for change in changes:
        if change.value is None:
            seen.pop(change.key, None)
        else:
            seen[change.key] = change.value
    assert seen == {k: v for k, v, _ in memory.scan(prefix)}


def test_a_watcher_from_too_long_ago_or_another_life_scans_again() -> None:
    memory = Memory()
    memory.put([("a", b"1")])
    assert memory.changes("", 99) is None
    memory.restore(50, [("a", b"1", 50)])
    assert memory.changes("", 10) is None
    assert memory.changes("", 50) == []


def test_the_journal_survives_and_a_torn_tail_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.put([("a", b"1"), ("b", b"2")])
    journal.put([("a", None), ("c", b"3")])
    revision = journal.memory.revision
    journal.close()
    with (tmp_path / "journal").open("ab") as file:
        file.write(b"\x40\x00\x00\x00torn")
    again = Journal(tmp_path)
    assert again.cut_bytes == 8
    assert {k: v for k, v, _ in again.memory.scan("")} == {"b": b"2", "c": b"3"}
    assert again.memory.revision == revision
    again.put([("d", b"4")])
    again.close()
    assert {k for k, _, _ in Journal(tmp_path).memory.scan("")} == {"b", "c", "d"}


def test_the_journal_is_compacted(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for k in range(40):
        journal.put([("a", bytes([k]) * 300_000)])
    assert (tmp_path / "journal").stat().st_size < 5_000_000
    journal.put([("b", b"last")])
    journal.close()
    values = {k: v for k, v, _ in Journal(tmp_path).memory.scan("")}
    assert values == {"a": bytes([39]) * 300_000, "b": b"last"}


def test_watch_write_behind_and_conditions_over_a_restart_of_the_store(tmp_path: Path) -> None:
    async def main() -> None:
        server = Rpc("controller-0", KEY)
        addr = await server.listen("127.0.0.1")
        StoreServer(server, Journal(tmp_path))
        client = Rpc("client", KEY)
        store = RemoteStore(client, addr)
        seen: dict[str, bytes] = {}
        changed = asyncio.Event()

        def on_items(items: dict[str, bytes]) -> None:
            seen.clear()
            seen.update(items)
            changed.set()

        def on_change(key: str, value: bytes | None) -> None:
            seen.pop(key, None) if value is None else seen.update({key: value})
            changed.set()

        async def until(expected: dict[str, bytes]) -> None:
            async with asyncio.timeout(100):
                while seen != expected:
                    changed.clear()
                    await changed.wait()

        store.watch("a/", on_items, on_change)
        store.put([("a/1", b"x"), ("b/1", b"y")])
        await until({"a/1": b"x"})
        with pytest.raises(Conflict, match="expected revision 0"):
            await store.put_now([("a/1", b"z")], expect=[("a/1", 0)])
        revision = (await store.scan("a/"))["a/1"][1]
        assert await store.put_now([("a/1", b"z")], expect=[("a/1", revision)]) > revision
        await until({"a/1": b"z"})

        await server.close()
        with pytest.raises(Unavailable):
            await store.scan("a/")
        store.put([("a/2", b"kept")])  # nobody hears it yet
        server = Rpc("controller-0", KEY)
        await server.listen("127.0.0.1", int(addr.rpartition(":")[2]))
        StoreServer(server, Journal(tmp_path))
        await until({"a/1": b"z", "a/2": b"kept"})
        store.close()
        await client.close()
        await server.close()

    asyncio.run(main())


def test_a_write_that_can_not_be_recorded_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.put([("a", b"1")])
    write = os.write
    with monkeypatch.context() as disk_full:
        disk_full.setattr(os, "write", lambda file, data: write(file, data[:5]))
        with pytest.raises(OSError, match="disk full"):
            journal.put([("b", b"2")])
    assert [k for k, _, _ in journal.memory.scan("")] == ["a"]
    journal.put([("c", b"3")])
    journal.close()
    again = Journal(tmp_path)
    assert again.cut_bytes == 0
    assert [k for k, _, _ in again.memory.scan("")] == ["a", "c"]
    again.close()


@given(st.lists(writes, max_size=6), st.data())
def test_whatever_is_left_of_the_file_is_a_prefix_of_the_writes(
    batches: list[list[tuple[str, bytes | None]]], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        journal, states = Journal(Path(folder)), [list[tuple[str, bytes, int]]()]
        for batch in batches:
            journal.put(batch)
            states.append(journal.memory.scan(""))
        journal.close()
        size = journal.path.stat().st_size
        os.truncate(journal.path, data.draw(st.integers(0, size)))
        again = Journal(Path(folder))
        assert again.memory.scan("") in states
        again.close()


def test_syncing_outlives_a_compaction(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.put([("a", b"1")])
    force = journal.syncing()
    assert force is not None
    assert journal.syncing() is None
    for k in range(40):
        journal.put([("a", bytes([k]) * 300_000)])
    force()
    journal.close()


class Client:
    """A store in this process, and a RemoteStore that calls it."""

    def __init__(self, folder: Path) -> None:
        self.rpc, self.host = Rpc("client", KEY), Rpc("controller-0", KEY)
        self.journal = Journal(folder)
        self.server = StoreServer(self.host, self.journal)

    async def __aenter__(self) -> RemoteStore:
        self.store = RemoteStore(self.rpc, await self.host.listen("127.0.0.1"))
        return self.store

    async def __aexit__(self, *_: object) -> None:
        self.store.close()
        await self.rpc.close()
        await self.host.close()
        self.journal.close()


def test_many_writes_are_coalesced_and_arrive_in_order_and_whole(tmp_path: Path) -> None:
    client = Client(tmp_path)

    async def main() -> None:
        async with client as store:
            big = bytes(700_000)
            store.put([("big/1", big), ("big/2", big), ("big/3", big)])
            for k in range(3000):
                store.put([(f"k/{k % 1500}", str(k).encode())])
            store.put([("k/0", None), ("too/big", bytes(remote.MAX_VALUE_BYTES + 1))])
            assert await store.flush(10)
            found = await store.scan("k/")
            assert {k: v for k, (v, _) in found.items()} == {
                f"k/{k}": str(1500 + k).encode() for k in range(1, 1500)
            }
            assert len(await store.scan("big/")) == 3
            assert await store.scan("too/") == {}
            assert store.dropped == 1
            assert client.journal.memory.revision == 1500 + 3 - 1  # one write a key; k/0 never came to be

    asyncio.run(main())


def test_what_waits_to_be_written_is_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_PENDING", 10)

    async def main() -> None:
        rpc = Rpc("client", KEY)
        store = RemoteStore(rpc, "127.0.0.1:1")
        store.put([(f"k/{k}", b"x") for k in range(25)])
        assert store.dropped == 15
        assert not await store.flush(0.01)
        assert list(store._pending) == [f"k/{k}" for k in range(15, 25)]
        store.close()
        await rpc.close()

    asyncio.run(main())


def test_an_awaited_write_takes_the_place_of_one_that_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(tmp_path) as store:
            store.put([("a", b"behind")])
            await store.put_now([("a", b"now")])
            assert await store.flush(5)
            assert (await store.scan("a"))["a"][0] == b"now"

    asyncio.run(main())


def test_a_watch_hears_only_of_its_prefix_and_of_every_write(tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(tmp_path) as store:
            seen: list[tuple[str, bytes | None]] = []
            there, last = asyncio.Event(), asyncio.Event()

            def on_change(key: str, value: bytes | None) -> None:
                seen.append((key, value))
                if value == b"last":
                    last.set()

            store.watch("a/", lambda items: there.set(), on_change)
            await there.wait()
            for k in range(50):
                await store.put_now([(f"b/{k}", b"x"), (f"a/{k}", b"y")])
            await store.put_now([("a/0", None), ("a/z", b"last")])
            await last.wait()
            assert seen == [*((f"a/{k}", b"y") for k in range(50)), ("a/0", None), ("a/z", b"last")]

    asyncio.run(main())
