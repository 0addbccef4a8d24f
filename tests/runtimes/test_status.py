"""What the node agent can read of an instance."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from runtimes.vllm_pd.status import StartRefused, Status
from runtimes.vllm_pd.timeline import Timelines


def test_the_file_and_the_socket_tell_every_change(tmp_path: Path) -> None:
    path = tmp_path / "ready.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        status = Status(tmp_path, str(path), clock=iter([1.0, 2.0]).__next__)
        status.enter("loading")
        status.listening(81)
        status.event("first_token")
        status.enter("ready")
        status.close()
        connection, _ = listener.accept()
        with connection, connection.makefile() as lines:
            told = [json.loads(lines.readline()) for _ in range(4)]
    assert [facts["phase"] for facts in told] == ["loading", "loading", "loading", "ready"]
    facts = json.loads((tmp_path / "status.json").read_text())
    assert facts == told[-1]
    assert facts["port"] == 81
    assert facts["events"] == [{"name": "listening", "at": 1.0}, {"name": "first_token", "at": 2.0}]
    assert facts["error"] is None


def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    status = Status(tmp_path, str(tmp_path / "nobody.sock"))
    status.fail(StartRefused("is broken", "--model", "copy it\nagain"))
    facts = json.loads((tmp_path / "status.json").read_text())
    assert facts["phase"] == "failed"
    assert facts["error"] == {"error": "is broken", "field": "--model", "remedy": "copy it\nagain"}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_refusal_is_one_line() -> None:
    assert StartRefused("a\n b", "--x", "c\n d").line == "--x: a b; c d"


def test_its_requests_are_left_behind(tmp_path: Path) -> None:
    timelines = Timelines()
    timelines.open("r1").mark("received", "/v1/completions", at=1.0)
    status = Status(tmp_path)
    status.leave_behind(timelines.facts())
    left = json.loads((tmp_path / "requests.json").read_text())
    assert left["r1"]["marks"] == [["received", 1.0, "/v1/completions"]]


def test_without_a_folder_nothing_is_written() -> None:
    Status(None).enter("loading")
    Status(None).leave_behind({})
