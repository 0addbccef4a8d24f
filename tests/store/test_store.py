"""The embedded store: revisions, conditions, history; its journal over kills; write-behind and watches."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.rpc import Rpc
from kserve_ext.store import Conflict, Unavailable
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
            async with asyncio.timeout(15):
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
