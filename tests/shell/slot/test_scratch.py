"""What a revision leaves in its pod's files: what is deleted, what stays, and what can't be deleted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from autoscaler_shim.slot import scratch
from autoscaler_shim.slot.scratch import Left, Scratch


def own() -> bool:
    return False  # this process has a machine to itself in no test


def of(*places: Path, shared: tuple[Path, ...] = (), without: tuple[Path, ...] = ()) -> Scratch:
    made = Scratch(places, shared, without, own)
    made.remember()
    return made


def test_what_is_new_or_changed_goes_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "kept" / "deep").mkdir(parents=True)
    for name in ("stays", "kept/deep/too", "changes"):
        (tmp_path / name).write_text("base")
    made = of(tmp_path)
    (tmp_path / "changes").write_text("what a revision wrote")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "secret").write_text("of a revision")
    (tmp_path / "kept" / "deep" / "new").write_text("of a revision")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "stays")
    assert made.clean() == 5
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"stays", "kept", "kept/deep", "kept/deep/too"}
    assert made.clean() == 0


def test_links_lead_nowhere_and_folders_that_were_closed_are_opened(tmp_path: Path) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "place"
    for folder in (elsewhere, place):
        folder.mkdir()
    (elsewhere / "file").write_text("somebody's")
    mode = elsewhere.stat().st_mode
    made = of(place)
    (place / "a").mkdir()
    (place / "a" / "out").symlink_to(elsewhere)
    (place / "out").symlink_to(elsewhere)
    (place / "a" / "b").mkdir()
    (place / "a" / "b" / "c").write_text("x")
    (place / "a" / "b").chmod(0)
    made.clean()
    assert list(place.iterdir()) == []
    assert (elsewhere / "file").read_text() == "somebody's"
    assert elsewhere.stat().st_mode == mode


def test_other_volumes_and_what_is_the_slots_are_left_alone(tmp_path: Path) -> None:
    claim, sock = tmp_path / "claim", tmp_path / "base.sock"
    claim.mkdir()
    made = of(tmp_path, shared=(claim,), without=(sock,))
    (claim / "model").write_text("of many")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
    assert made.clean() == 0
    assert (claim / "model").exists()
    assert sock.exists()


def test_what_can_not_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = of(tmp_path)
    (tmp_path / "fast").write_text("x")
    monkeypatch.setattr(scratch, "_delete", lambda path: None)
    with pytest.raises(Left, match=f"{tmp_path / 'fast'} can't be deleted"):
        made.clean()


def test_where_others_run_in_the_container_nothing_is_called_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "in_shared_container", lambda: True)
    made = of(tmp_path)
    (tmp_path / "new").write_text("x")
    with pytest.raises(Left, match="shareProcessNamespace"):
        made.clean()
    assert (tmp_path / "new").exists()


def test_outside_of_a_container_nothing_is_touched_that_was_not_named(tmp_path: Path) -> None:
    assert not scratch.in_own_container()
    made = of(tmp_path / "place")
    assert made._places == [tmp_path / "place"]
    (tmp_path / "somebody").write_text("x")
    assert made.clean() == 0
    assert (tmp_path / "somebody").exists()
