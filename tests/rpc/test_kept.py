"""The process that a zygote keeps ready: becomes the instance, or makes room; and isn't tried for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from kserve_ext.rpc.kept import MOST_FAILURES, Kept


def listening(path: str, answer: dict[str, object]) -> socket.socket:
    """Answers one request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as file:
            file.readline()
            connection.sendall(json.dumps(answer).encode() + b"\n")

    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_it_becomes_the_instance_and_is_another_no_more(tmp_path: Path) -> None:
    kept = Kept(str(tmp_path / "s"))
    kept.forked(4242)
    with listening(kept.path, {"pid": 4242}):
        assert kept.become({"argv": []}) == 4242
    assert kept.wanted
    assert kept.become({"argv": []}) == 0


@pytest.mark.parametrize("answer", [{"error": "--dtype: differs"}, {"pid": 1}, {}])
def test_one_that_is_for_others_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, object]
) -> None:
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append((pid, number)))
    kept = Kept(str(tmp_path / "s"))
    kept.forked(4242)
    with listening(kept.path, answer):
        assert kept.become({"argv": []}) == 0
    assert ended == [(4242, signal.SIGKILL)]
    kept.ended(4242, -9)
    assert kept.wanted, "its end was ours: no failure"


def test_one_that_is_not_there_yet_makes_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    kept = Kept(str(tmp_path / "s"))
    kept.forked(4242)
    assert not kept.ready()
    assert kept.become({"argv": []}) == 0


def test_it_is_tried_again_after_an_accident_and_not_after_a_refusal(tmp_path: Path) -> None:
    kept = Kept(str(tmp_path / "s"))
    for pid in range(1, MOST_FAILURES + 1):
        assert kept.wanted
        kept.forked(pid)
        kept.ended(pid, 1)
    assert not kept.wanted
    assert "exit code 1" in kept.reason
    refused = Kept(str(tmp_path / "t"))
    refused.forked(7)
    refused.ended(8, 2)  # somebody else
    assert refused.pid == 7
    refused.ended(7, 2)
    assert not refused.wanted
