"""The embedded store's content: revisions, conditions, history; its journal over kills."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.store.journal import Journal
from kserve_ext.store.memory import Memory

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


def test_a_journal_that_is_made_anew_has_another_life(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.put([("a", b"1")])
    journal.close()
    again = Journal(tmp_path)
    assert again.life == journal.life
    again.close()
    again.path.unlink()
    anew = Journal(tmp_path)
    assert anew.life != journal.life
    anew.close()
