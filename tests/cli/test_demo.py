"""How the demo begins and ends, without a cluster: what it takes down, and what it says before."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from examples import demo
from kserve_ext.rpc.process import start_ticks


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the demo asked of the command."""
    asked: list[str] = []

    def record(galaxy: demo.Galaxy, *args: str, show: bool = True, timeout_s: float = 0.0) -> str:
        asked.append(args[0])
        return ""

    monkeypatch.setenv("GALAXY_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["demo"])
    monkeypatch.setattr(demo.Galaxy, "__call__", record)
    for act in ("start", "unified", "pair", "back_to_zero"):
        monkeypatch.setattr(demo, act, lambda galaxy: None)
    return asked


def test_a_demo_that_goes_well_takes_its_cluster_down_once(verbs: list[str]) -> None:
    assert demo.main() == 0
    assert verbs == ["down", "down"], "what was there before, and its own"


def test_a_pipe_that_nobody_reads_any_more_leaves_no_cluster(
    verbs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(galaxy: demo.Galaxy) -> None:
        raise SystemExit(1)  # as rich does

    monkeypatch.setattr(demo, "unified", closed)
    with pytest.raises(SystemExit):
        demo.main()
    assert verbs == ["down", "down"]


def test_a_demo_that_runs_is_not_stopped_silently(
    verbs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main() == 0
    assert "an earlier demo" not in capsys.readouterr().out
    run = tmp_path / "demo" / "run"
    run.mkdir(parents=True)
    me = {"id": "node-0", "kind": "node", "pid": os.getpid(), "started": start_ticks(os.getpid())}
    (run / "node-0.json").write_text(json.dumps(me))
    assert demo.main() == 0
    assert f"an earlier demo runs in {tmp_path / 'demo'}: it is stopped first" in capsys.readouterr().out


def test_the_client_asks_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Models(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"object": "list", "data": []}'
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with HTTPServer(("127.0.0.1", 0), Models) as server:
        (tmp_path / "cluster.json").write_text(json.dumps({"http": f"127.0.0.1:{server.server_port}"}))
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        with demo.client(demo.Galaxy(tmp_path), "tiny") as client:
            assert client.models.list().data == []
        thread.join()
