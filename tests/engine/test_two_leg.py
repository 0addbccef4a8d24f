"""Plain vLLM servers with NIXL behind our router: the tokens of one engine, KV that is pulled, and none that stays.

Needs the package nixl: in the environment, or where the benches keep it (python -m bench.kv_peers fetches it).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.peers import packages
from kserve_ext.rpc.ports import free_ports
from tests.engine.instances import ROOT, Answer, until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CONNECTOR = json.dumps(
    {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_buffer_device": "cpu",
        "kv_load_failure_policy": "recompute",
        # Longer than any test: what is free is so because somebody has freed it, however busy the machine is.
        "kv_connector_extra_config": {"kv_lease_duration": 3600},
    }
)
START_S = 300.0
#: vLLM's workers wait for their next message in a loop of sched_yield. On two processors with Linux 6.18, beside
#: UCX's thread that polls, tasks with work to do were then left waiting 18 s of 20 (/proc/*/schedstat), requests hung
#: for minutes, and so did the machine: a task forfeits virtual time with each yield there. With a short sleep instead
#: nobody waits for more than milliseconds.
PATIENT = """
import os, time
os.sched_yield = lambda: time.sleep(0.0002)
"""


def nixl_path() -> str:
    """To be put on PYTHONPATH; skips where there is none."""
    if importlib.util.find_spec("nixl") is not None:
        return ""
    folder = packages.folder("nixl")
    if not folder.exists():
        pytest.skip(f"nixl is not installed: pip install --no-deps {' '.join(packages.PACKAGES['nixl'])}")
    return str(folder)


@dataclass
class Server:
    """A process that serves HTTP on `port`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"content-type": "application/json", **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def well(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            return self.ask("/health").status == 200
        return False

    def number(self, pattern: str) -> float:
        """Of the first metric that matches, 0 if none does."""
        found = re.search(rf"^{pattern} (\S+)$", self.ask("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def pulled(self) -> float:
        """Prompt tokens whose KV came from elsewhere."""
        return self.number(r'vllm:prompt_tokens_by_source_total\{[^}]*source="external_kv_transfer"[^}]*\}')

    def computed(self) -> float:
        return self.number(r'vllm:prompt_tokens_by_source_total\{[^}]*source="local_compute"[^}]*\}')

    def keeps(self) -> float:
        """Share of the KV cache that is in use."""
        return self.number(r"vllm:kv_cache_usage_perc\{[^}]*\}")

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its engine, too, should it not have ended that
        self.process.wait()


def engine_command(model: Path) -> list[str]:
    words = [
        "--model",
        str(model),
        "--served-model-name",
        "tiny",
        "--dtype",
        "float32",
        "--max-model-len",
        "2048",
    ]
    words += ["--enforce-eager", "--kv-cache-memory-bytes", str(256 << 20), "--kv-transfer-config", CONNECTOR]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]


def environment(path: str) -> dict[str, str]:
    given = {
        "PYTHONPATH": os.pathsep.join(filter(None, (path, str(ROOT)))),
        "UCX_TLS": "tcp",
        "UCX_NET_DEVICES": "lo",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    return {**os.environ, **given}


def start(folder: Path, name: str, command: list[str], port: int, env: dict[str, str]) -> Server:
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=ROOT, start_new_session=True)
    return Server(process, port, log)


@dataclass
class Plain:
    prefill: Server
    decode: Server
    router: Server

    def tokens(
        self, server: Server, prompt: list[int], count: int = 8, **more: Any
    ) -> tuple[list[int], Answer]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}
        answer = server.ask("/v1/completions", {**body, "return_token_ids": True, **more})
        assert answer.status == 200, answer.body
        return answer.json["choices"][0]["token_ids"], answer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Plain]:
    """Prefill is a server by itself; decode is the engine of an instance: the router has started it."""
    folder = tmp_path_factory.mktemp("plain")
    patient = folder / "patient"
    patient.mkdir()
    (patient / "sitecustomize.py").write_text(PATIENT)
    env = environment(os.pathsep.join(filter(None, (str(patient), nixl_path()))))
    ports = free_ports(4)
    engine = engine_command(tiny_model)
    with contextlib.ExitStack() as stack:
        side = {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(ports[0])}
        command = [*engine, "--host", "127.0.0.1", "--port", str(ports[1])]
        prefill = start(folder, "prefill", command, ports[1], {**env, **side})
        stack.callback(prefill.end)
        words = ["--prefill", prefill.url, "--pd-threshold-tokens", "64", "--check-seconds", "1"]
        command = [sys.executable, "-m", "runtimes.two_leg", "--role", "decode", "--host", "127.0.0.1"]
        command += ["--port", str(ports[2]), *words, "--", *engine]
        router = start(folder, "router", command, ports[2], {**env, "GALAXY_INSTANCE_DIR": str(folder)})
        stack.callback(router.end)
        until(lambda: router.well() and prefill.well(), "plain engines", START_S)
        yield Plain(prefill, router, router)
        assert json.loads((folder / "status.json").read_text())["phase"] == "ready"


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 260) for _ in range(length)]


@pytest.mark.parametrize("length", [5, 63, 64, 128, 129, 700, 1900])
def test_tokens_equal_one_engines_and_the_prompt_is_pulled(plain: Plain, length: int) -> None:
    pulled, computed = plain.decode.pulled(), plain.decode.computed()
    got, answer = plain.tokens(plain.router, prompt(length, length), 16)
    assert got == plain.tokens(plain.prefill, prompt(length, length), 16)[0]
    word, *facts = answer.headers["x-kv-transfer"].split(";")
    if length < 64:
        assert (word, facts) == ("none", ["reason=below-threshold"])
        assert plain.decode.pulled() == pulled
        return
    assert (word, facts[0], facts[2]) == ("vllm", f"tokens={length}", f"prefill={plain.prefill.url}")
    assert plain.decode.pulled() - pulled == length
    assert plain.decode.computed() == computed
    until(lambda: plain.prefill.keeps() == 0, "prefill's blocks are free")


def test_chat_streams(plain: Plain) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "words and words " * 60}],
        "max_tokens": 6,
    }
    body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    pulled = plain.decode.pulled()
    answer = plain.router.ask("/v1/chat/completions", body, {"x-request-id": "of-mine"})
    assert (answer.status, answer.headers["x-request-id"]) == (200, "of-mine")
    events = answer.body.decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 6
    assert plain.decode.pulled() > pulled


def test_many_at_once(plain: Plain) -> None:
    prompts = [prompt(4000 + n, 100 + 137 * n) for n in range(10)]
    with ThreadPoolExecutor(10) as pool:
        got = list(pool.map(lambda tokens: plain.tokens(plain.router, tokens, 6), prompts))
    for tokens, (found, answer) in zip(prompts, got, strict=True):
        assert answer.headers["x-kv-transfer"].startswith("vllm;")
        assert found == plain.tokens(plain.prefill, tokens, 6)[0]
    until(lambda: plain.prefill.keeps() == plain.decode.keeps() == 0, "no block is kept")


def test_what_decode_refuses_does_not_stay_at_prefill(plain: Plain) -> None:
    """Prefill computes it (one token, no stream); decode refuses it before its engine has seen it."""
    body = {
        "model": "tiny",
        "prompt": prompt(5000, 300),
        "max_tokens": 4,
        "stream_options": {"include_usage": True},
    }
    answer = plain.router.ask("/v1/completions", body)
    assert (answer.status, answer.headers["x-kv-transfer"].partition(";")[0]) == (400, "vllm")
    until(lambda: plain.prefill.keeps() == 0, "prefill's blocks are free")


def test_clients_that_hang_up_leave_no_block_on_either_side(plain: Plain) -> None:
    def one(number: int) -> None:
        rng = random.Random(number)
        body = {"model": "tiny", "prompt": prompt(6000 + number, 900), "max_tokens": 400, "ignore_eos": True}
        body["stream"] = bool(number % 2)
        request = urllib.request.Request(
            plain.router.url + "/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(request, timeout=0.02 + rng.random() / 3) as answer,
        ):
            answer.read(1)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(24)))
    until(lambda: plain.prefill.keeps() == plain.decode.keeps() == 0, "no block is kept")
    got, answer = plain.tokens(plain.router, prompt(6500, 500))
    assert answer.headers["x-kv-transfer"].startswith("vllm;")
    assert got == plain.tokens(plain.prefill, prompt(6500, 500))[0]


def test_without_prefill_decode_computes_alone(plain: Plain) -> None:
    """The last test: it ends prefill."""
    expected = plain.tokens(plain.prefill, prompt(7000, 400))[0]
    plain.prefill.end()
    got, answer = plain.tokens(plain.router, prompt(7000, 400))
    assert got == expected
    assert answer.headers["x-kv-transfer"].startswith("none;reason=")
