"""kill -9 of the instance that streams, with real engines: the client sees one whole stream."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from kserve_ext.wire.continuation import SEAM
from tests.cluster.test_at_zero import instances
from tests.support.embedded import ROOT, Embedded
from tools.setup.layout import Layout

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: run `make setup`"
    ),
]

LONG_S = 120.0
TOKENS = 600
PROMPT = "Rivers run into the sea, and the sea is not full. " * 4
SERVICES = [("tiny", "tiny"), ("tiny-pd-decode", "tiny-pd")]


class Streamed(NamedTuple):
    id: str
    text: bytes
    tokens: list[int]
    gap_s: float  # from the last death until the stream went on


@pytest.fixture(scope="module")
def galaxy(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Embedded]:
    models = Layout.of_user().tiny_model_link.parent
    size = ("--node-cpu", "16", "--node-memory", "32Gi", "--nodes", "1", "--pvc", f"models={models}")
    with Embedded(tmp_path_factory.mktemp("galaxy") / "data", *size) as up:
        for name in ("unified", "prefill-decode"):
            manifest = (ROOT / "examples" / f"{name}.yaml").read_text()
            up.galaxy("apply", "--no-wait", "-f", "-", stdin=manifest.replace("window: 6s", "window: 120s"))
        yield up


def stream(galaxy: Embedded, service: str, model: str, path: str, kills: int = 0, **more: object) -> Streamed:
    """One greedy stream; so many of the instances that serve it are killed, each after a hundred lines."""
    host, _, port = galaxy.run_file("dispatch-0")["http"].partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=LONG_S)
    body = {"model": model, "stream": True, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    asked = (
        {"prompt": PROMPT}
        if path == "/v1/completions"
        else {"messages": [{"role": "user", "content": PROMPT}]}
    )
    connection.request(
        "POST",
        path,
        json.dumps({**body, **asked, "return_token_ids": True, **more}),
        {"Host": f"{service}.default.galaxy.local", "content-type": "application/json"},
    )
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    name = answer.headers["x-request-id"]
    lines: list[bytes] = []
    since, died, gap_s = 0, 0.0, 0.0
    for line in answer:
        lines.append(line)
        since += 1
        if line.strip() == SEAM.strip():
            since, gap_s = 0, time.monotonic() - died
        elif since == 100 and kills:
            kills -= 1
            kill_who_serves(galaxy, name)
            died = time.monotonic()
    connection.close()
    tokens: list[int] = []
    for line in lines:
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:]).get("choices") or []:
                tokens += choice.get("token_ids") or []
    return Streamed(name, b"".join(lines), tokens, gap_s)


def kill_who_serves(galaxy: Embedded, request: str) -> None:
    """All instances stand still while it is looked up, or the stream may have ended before."""
    pids = {
        file.parent.name: int(json.loads(file.read_text())["pid"])
        for file in galaxy.data.glob("nodes/*/instances/*/pid.json")
    }
    paused = []
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):  # of one that has ended
            os.kill(pid, signal.SIGSTOP)
            paused.append(pid)
    try:
        os.kill(pids[galaxy.json("explain", request)["instance"]], signal.SIGKILL)
    finally:
        for pid in paused:
            with contextlib.suppress(ProcessLookupError):  # the killed one
                os.kill(pid, signal.SIGCONT)


def metric(galaxy: Embedded, name: str) -> float:
    with urllib.request.urlopen(f"http://{galaxy.run_file('dispatch-0')['admin']}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    return 0.0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(("service", "model"), SERVICES)
def test_the_instance_that_streams_is_killed(galaxy: Embedded, service: str, model: str, path: str) -> None:
    whole = stream(galaxy, service, model, path)
    assert len(whole.tokens) == TOKENS
    before = metric(galaxy, "galaxy_streams_continued_total")
    cut = stream(galaxy, service, model, path, kills=1)
    assert cut.tokens == whole.tokens
    assert cut.text.count(SEAM) == 1
    assert cut.text.endswith(b"data: [DONE]\n\n")
    assert cut.text.count(b'"role":') == whole.text.count(b'"role":')
    heads = {(e["id"], e["created"], e["model"]) for e in map(json.loads, events(cut.text))}
    assert len(heads) == 1
    assert b"galaxy" not in cut.text
    assert metric(galaxy, "galaxy_streams_continued_total") == before + 1
    said = galaxy.galaxy("explain", cut.id)
    assert "its instance broke off" in said
    assert "another instance goes on" in said
    print(f"{service}{path}: went on after {cut.gap_s:.2f} s")


def test_six_streams_at_once_and_two_deaths(galaxy: Embedded) -> None:
    """Tokens of one batch need not be those of another: how many of them there are is what counts."""
    service, model = SERVICES[0]
    stream(galaxy, service, model, "/v1/completions", max_tokens=1)
    with ThreadPoolExecutor(6) as pool:
        others = [
            pool.submit(stream, galaxy, service, model, "/v1/completions", prompt=f"{n}: {PROMPT}")
            for n in range(5)
        ]
        killing = stream(galaxy, service, model, "/v1/completions", kills=2)
        streams = [killing, *(other.result() for other in others)]
    for one in streams:
        assert len(one.tokens) == TOKENS
        assert one.text.endswith(b"data: [DONE]\n\n")
    assert killing.text.count(SEAM) == 2
    print(f"seams: {[one.text.count(SEAM) for one in streams]}")


def events(text: bytes) -> list[bytes]:
    return [line[6:] for line in text.split(b"\n") if line.startswith(b"data: {")]


def test_where_another_instance_is_ready_it_goes_on_at_once(galaxy: Embedded) -> None:
    manifest = (ROOT / "examples" / "unified.yaml").read_text().replace("name: tiny\n", "name: twin\n", 1)
    manifest = manifest.replace("minReplicas: 0", "minReplicas: 2")
    galaxy.galaxy("apply", "--no-wait", "-f", "-", stdin=manifest)
    galaxy.wait(
        "two instances", lambda: [i["state"] for i in instances(galaxy, "twin")] == ["ready", "ready"]
    )
    whole = stream(galaxy, "twin", "twin", "/v1/completions")
    cut = stream(galaxy, "twin", "twin", "/v1/completions", kills=1)
    assert cut.tokens == whole.tokens
    assert cut.text.count(SEAM) == 1
    print(f"went on after {cut.gap_s:.3f} s")


def test_a_service_that_asks_for_no_continuation(galaxy: Embedded) -> None:
    manifest = (ROOT / "examples" / "unified.yaml").read_text().replace("name: tiny\n", "name: plain\n", 1)
    off = '  annotations:\n    kserve-galaxy.io/continuation: "off"\n'
    galaxy.galaxy("apply", "--no-wait", "-f", "-", stdin=manifest.replace("  annotations:\n", off))
    cut = stream(galaxy, "plain", "plain", "/v1/completions", kills=1)
    assert b'"code": "instance_failed"' in cut.text
    assert b"[DONE]" not in cut.text
