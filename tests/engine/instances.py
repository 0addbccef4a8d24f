"""Starting real instances from one zygote, and asking them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

WAIT_S = 120.0
ROOT = Path(__file__).resolve().parents[2]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask_zygote(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(str(path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as file:
            answer: dict[str, Any] = json.loads(file.readline())
            return answer


def until(condition: Any, what: str, wait_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {wait_s} s: {what}")


@dataclass
class Instance:
    """One process. `port` is known once it listens."""

    folder: Path
    pid: int
    ended: dict[str, Any] | None = field(default=None)

    def status(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            return {"phase": "", "port": 0}
        return facts

    @property
    def port(self) -> int:
        return int(self.status()["port"])

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ready(self) -> Instance:
        until(lambda: self.status()["phase"] == "ready" or self.exit_facts(), "ready")
        assert self.status()["phase"] == "ready", self.log[-3000:]
        return self

    def exit_facts(self) -> dict[str, Any] | None:
        try:
            facts: dict[str, Any] = json.loads((self.folder / "exit.json").read_text())
        except FileNotFoundError:
            return None
        return facts

    def exited(self) -> dict[str, Any]:
        facts: dict[str, Any] = until(self.exit_facts, "exit")
        return facts

    def kill(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def get(self, path: str) -> Answer:
        return self.ask(path)

    def ask(
        self, path: str, body: dict[str, Any] | bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data,
            {"content-type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return Answer(answer.status, _lower(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, _lower(error.headers), error.read())

    def tokens(self, prompt: list[int], count: int = 8, **more: Any) -> tuple[list[int], Answer]:
        """Greedy tokens of a prompt of token ids."""
        body = {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **more,
        }
        answer = self.ask("/v1/completions", body)
        assert answer.status == 200, answer.body
        return answer.json["choices"][0]["token_ids"], answer

    def stream(self, body: dict[str, Any], path: str = "/v1/completions") -> Iterator[bytes]:
        """Lines of an event stream, as they come."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps({"model": "tiny", "stream": True, **body}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            for line in answer:
                if line.strip():
                    yield line.strip()

    def sources(self) -> dict[str, float]:
        """Prompt tokens by where their KV came from."""
        text = self.get("/metrics").body.decode()
        pattern = r'vllm:prompt_tokens_by_source_total\{[^}]*source="(\w+)"[^}]*\} (\S+)'
        return {match[1]: float(match[2]) for match in re.finditer(pattern, text)}


class Nursery:
    """The zygote and the instances that were forked from it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.path = folder / "zygote.sock"
        self.instances: list[Instance] = []
        (folder / "key").write_bytes(b"k" * 32)
        self.log = (folder / "zygote.log").open("wb")
        self.process = self._zygote(self.path, "tests.engine.faulty")
        until(self.path.exists, "zygote's socket")
        self.facts = ask_zygote(self.path, {"ping": True})

    def _zygote(self, path: Path, runtime: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runtimes.vllm_pd.zygote", "--socket", str(path), "--name", "tests"]
        return subprocess.Popen([*command, "--runtime", runtime], cwd=ROOT, stderr=self.log)

    def start(self, *options: str, model: Path | None = None, env: dict[str, str] | None = None) -> Instance:
        folder = self.folder / f"instance-{len(self.instances)}"
        folder.mkdir()
        argv = ["--model", str(model or self.model), "--port", "0", "--host", "127.0.0.1"]
        argv += ["--served-model-name", "tiny", "--max-model-len", "2048", "--dtype", "float32", *options]
        given = {
            "GALAXY_INSTANCE_DIR": str(folder),
            "GALAXY_CLUSTER_KEY_FILE": str(self.folder / "key"),
            **(env or {}),
        }
        log = str(folder / "log")
        request = {"argv": argv, "env": given, "stdout": log, "stderr": log, "instance_dir": str(folder)}
        instance = Instance(folder, ask_zygote(self.path, request)["pid"])
        self.instances.append(instance)
        return instance

    def close(self) -> None:
        for instance in self.instances:
            if instance.exit_facts() is None:
                instance.kill(signal.SIGKILL)
                instance.exited()
        self.process.terminate()
        self.process.wait(WAIT_S)
        self.log.close()


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
