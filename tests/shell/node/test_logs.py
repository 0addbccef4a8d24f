"""Logs: bounded, and read from the end, whole lines."""

from __future__ import annotations

from pathlib import Path

from autoscaler_shim.node import logs


def test_a_log_past_its_bound_is_kept_once_and_emptied_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as writer:  # as instances open it: for append
        writer.write(b"old\n" * 100)
        assert not logs.bound(path, 400)
        assert logs.bound(path, 399)
        writer.write(b"new\n")
        assert path.read_bytes() == b"new\n"
        assert logs.tail(path, 3) == "old\nold\nnew"
    assert (tmp_path / "log.1").stat().st_size == 400


def test_tail_gives_whole_lines_within_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    assert logs.tail(path, 2) == "line 998\nline 999"
    assert logs.tail(path, 1000, 20) == "line 998\nline 999"
    assert logs.tail(tmp_path / "none") == ""
    assert logs.last_words(path, 17) == "line 998 | line 999"[-17:]
