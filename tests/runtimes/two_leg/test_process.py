"""The router as a process: what it refuses to start with, the engine that it starts, readiness, drain, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kserve_ext.core.two_leg.engines import LATE_CHECKS
from kserve_ext.rpc import ports
from runtimes.two_leg.options import parse
from runtimes.two_leg.server import main
from runtimes.vllm_pd.status import StartRefused
from tests.support.plain_engine import PlainEngine
from tests.support.processes import lives

ENGINE = ["--", sys.executable, "-m", "tests.support.plain_engine"]
WAIT_S = 60.0


@pytest.mark.parametrize(
    ("argv", "environ", "says"),
    [
        ([], {}, "--decode: which engine answers: none is given"),
        (["--decode", "http://d", "--engine-url", "http://e"], {}, "more than one of them is given"),
        (["--decode", "http://d/v1"], {}, "only http://HOST:PORT, the path is the client's"),
        (
            ["--prefill", "ftp://p", "--decode", "http://d"],
            {},
            "--prefill: 'ftp://p' is not the URL of an engine",
        ),
        (["--decode", "http://d", "--pd-threshold-tokens", "few"], {}, "--pd-threshold-tokens"),
        (
            ["--decode", "http://d"],
            {"GALAXY_PD_THRESHOLD_TOKENS": "few"},
            "GALAXY_PD_THRESHOLD_TOKENS: 'few' is not a number",
        ),
        (["--decode", "http://d"], {"GALAXY_ROLE": "both"}, "GALAXY_ROLE: 'both' is not a role"),
        (["--decode", "http://d", "--chars-per-token", "0"], {}, "--chars-per-token"),
        (
            ["--decode", "http://d", "--pd-threshold-tokens", "-1"],
            {},
            "--pd-threshold-tokens: -1 is out of bounds; give a number from 0 on",
        ),
        (["--decode", "http://d", "--prefill-seconds", "nan"], {}, "--prefill-seconds: nan is out of bounds"),
        (["--decode", "http://d"], {"GALAXY_DRAIN_SECONDS": "-1"}, "GALAXY_DRAIN_SECONDS: -1 is out of"),
        (["--decode", "http://d", "--port", "99999"], {}, "--port: 99999 is no port"),
    ],
)
def test_a_start_that_can_not_succeed_names_the_argument(
    argv: list[str], environ: dict[str, str], says: str
) -> None:
    with pytest.raises(StartRefused) as refused:
        parse(argv, environ)
    assert says in refused.value.line


def test_what_the_cluster_sets_counts_unless_the_command_says_otherwise() -> None:
    environ = {
        "PORT": "1234",
        "GALAXY_ROLE": "decode",
        "GALAXY_PD": "always",
        "GALAXY_PD_THRESHOLD_TOKENS": "77",
        "GALAXY_KV_TRANSFER_REQUIRED": "true",
    }
    args = parse(["--prefill", "p:1", "p:2", *ENGINE, "--name=x"], environ)
    assert (args.port, args.role, args.pd, args.pd_threshold_tokens) == (1234, "decode", "always", 77)
    assert (args.kv_transfer_required, args.prefill) == (True, ["p:1", "p:2"])
    assert args.engine == [*ENGINE[1:], "--name=x"]
    args = parse(["--decode", "d:1", "--port", "9", "--pd", "never"], environ)
    assert (args.port, args.pd) == (9, "never")
    assert parse(["--decode", "d:1"], {"GALAXY_ROLE": "prefill", "GALAXY_PD": "always"}).pd == "never"


def test_a_program_that_is_not_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "0", "--", "no-such-engine"]) == 2
    assert "command: there is no program 'no-such-engine' here; install it" in capsys.readouterr().err


class Process:
    def __init__(self, folder: Path, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "runtimes.two_leg", "--host", "127.0.0.1", "--port", "0"]
        given = {**os.environ, "GALAXY_INSTANCE_DIR": str(folder), **(env or {})}
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([*command, *argv], env=given, stdout=log, stderr=log)

    @property
    def status(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads((self.folder / "status.json").read_text()))
        return {"phase": "", "port": 0}

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def ready(self) -> Process:
        self.until(lambda: self.status["phase"] == "ready")
        return self

    def ask(self, path: str, **body: Any) -> Any:
        url = f"http://127.0.0.1:{self.status['port']}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.loads(answer.read())

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        return self._process.wait(WAIT_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def start(*argv: str, **env: str) -> Process:
        made.append(Process(tmp_path, argv, env))
        return made[-1]

    yield start
    for process in made:
        process.close()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_it_is_ready_when_the_engine_that_it_has_started_is_and_ends_with_it(
    start: Callable[..., Process],
) -> None:
    process = start("--check-seconds", "0.1", *ENGINE, "--name", "mine").ready()
    assert process.ask("/v1/completions", model="m", prompt=[1, 2, 3])["by"] == "mine"
    (engine,) = children(process._process.pid)
    words = Path(f"/proc/{engine}/cmdline").read_text().split("\0")
    first = int(ports.RANGE.read_text().split()[0])
    assert int(words[words.index("--port") + 1]) < first, (
        "while it loads, the kernel gives its port to nobody"
    )
    process.signal(signal.SIGTERM)
    assert process.ended() == 0
    assert process.status["phase"] == "draining"
    assert not lives(engine)


def test_an_engine_that_ends_ends_it_with_the_reason(start: Callable[..., Process]) -> None:
    process = start(*ENGINE).ready()
    os.kill(children(process._process.pid)[0], signal.SIGKILL)
    assert process.ended() == 1
    assert process.status["phase"] == "failed"
    assert "the engine has ended with exit code -9" in process.log


def test_a_router_that_is_killed_leaves_no_engine(start: Callable[..., Process]) -> None:
    process = start(*ENGINE).ready()
    (engine,) = children(process._process.pid)
    process.signal(signal.SIGKILL)
    process.ended()
    process.until(lambda: not lives(engine))


class Engines:
    """Plain engines on a loop of their own."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._made: list[PlainEngine] = []

    def start(self) -> PlainEngine:
        self._made.append(self.do(PlainEngine("d", self.kept).start()))
        return self._made[-1]

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def release(self, engine: PlainEngine) -> None:
        self._loop.call_soon_threadsafe(engine.go.set)

    def close(self) -> None:
        for engine in self._made:
            self.do(engine.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def engines() -> Iterator[Engines]:
    made = Engines()
    yield made
    made.close()


def test_open_answers_end_before_it_does(start: Callable[..., Process], engines: Engines) -> None:
    engine = engines.start()
    process = start("--decode", engine.url).ready()
    engine.fault = "hang"
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(process.ask("/v1/completions", prompt=[1])))
    asking.start()
    process.until(lambda: engine.in_flight)
    process.signal(signal.SIGTERM)
    process.until(lambda: process.status["phase"] == "draining")
    engines.release(engine)
    asking.join(WAIT_S)
    assert [answer["by"] for answer in answers] == ["d"]
    assert process.ended() == 0


def test_prefill_stays_until_what_it_keeps_is_pulled(start: Callable[..., Process], engines: Engines) -> None:
    engine = engines.start()
    process = start("--role", "prefill", "--engine-url", engine.url).ready()
    handed = process.ask("/v1/completions", prompt=[1] * 99, kv_transfer_params={"do_remote_decode": True})
    assert handed["kv_transfer_params"]["do_remote_prefill"], "the legs of others pass as they are"
    process.signal(signal.SIGTERM)
    process.until(lambda: process.status["phase"] == "draining")
    with pytest.raises(subprocess.TimeoutExpired):
        process._process.wait(0.5)
    engines.kept.clear()
    assert process.ended() == 0


def test_it_is_not_ready_without_a_healthy_engine(start: Callable[..., Process], engines: Engines) -> None:
    engine = engines.start()
    engine.healthy = False
    process = start("--decode", engine.url, "--check-seconds", "0.05")
    process.until(lambda: process.status["phase"] == "loading" and process.status["port"])
    with pytest.raises(urllib.error.HTTPError) as refused:
        process.ask("/v1/completions", prompt=[1])
    with refused.value as error:
        assert (error.code, error.headers["retry-after"]) == (503, "1")
        assert f"no decode engine has passed its health check yet ({engine.url})" in error.read().decode()
    process.until(lambda: f"decode engine {engine.url}: " in process.log)
    assert "listening at 127.0.0.1:" in process.log
    engine.healthy = True
    process.ready()
    engine.healthy = False
    process.until(lambda: process.log.count("answered 503 to /health") == 2)


def test_late_checks_keep_no_legs_away_until_there_are_some_in_a_row(
    start: Callable[..., Process], engines: Engines
) -> None:
    """A prefill engine under load, or a router that had no processor, is late for one."""
    prefill, decode = engines.start(), engines.start()
    words = ("--prefill", prefill.url, "--pd-threshold-tokens", "1", "--check-seconds", "0.05")
    process = start("--decode", decode.url, *words).ready()

    def transfer() -> str:
        url = f"http://127.0.0.1:{process.status['port']}/v1/completions"
        with urllib.request.urlopen(url, json.dumps({"prompt": [1, 2, 3]}).encode(), WAIT_S) as answer:
            return str(answer.headers["x-kv-transfer"])

    prefill.unanswered = LATE_CHECKS - 1
    process.until(lambda: prefill.unanswered == 0)
    assert transfer().startswith("vllm;")
    prefill.unanswered = 1_000_000
    process.until(lambda: f"prefill engine {prefill.url}: no answer to /health within 1 s" in process.log)
    assert transfer() == "none;reason=backing-off"
    prefill.unanswered = 0
    process.until(lambda: f"prefill engine {prefill.url}: is well again" in process.log)
    assert transfer().startswith("vllm;")
