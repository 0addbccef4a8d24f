"""Instances for the benches of engines on a GPU: started one by one, asked over HTTP, told to sleep and to wake.

A start of vLLM on a GPU fails in ways that a CPU never shows, so every wait ends with the log of what was waited for.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.engine.instances import ROOT, Instance, until

START_S: Final = 240.0
#: Several engines share a GPU: none may take what is free of it. The sizes are for the tiny model.
ON_GPU: Final = ("--gpu-memory-utilization", "0.08", "--kv-cache-memory-bytes", str(512 << 20))
NAME: Final = "tiny"
#: A command that gives what it runs a /dev/shm of its own, as pods have: CUDA IPC is then the only rung without a
#: network. Needs root.
OWN_SHM: Final = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh")


class Spawned(Instance):
    """A process of its own, not a fork."""

    process: subprocess.Popen[bytes]

    def ready(self) -> Spawned:
        until(
            lambda: self.status()["phase"] in ("ready", "failed") or self.process.poll() is not None,
            f"{self.folder.name} is ready: {self.log[-3000:]}",
            START_S,
        )
        if self.status()["phase"] != "ready":
            raise RuntimeError(f"{self.folder.name} did not start: {self.log[-6000:]}")
        return self

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the node says to it."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_S)
            connection.connect(str(self.folder / "control.sock"))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer: dict[str, Any] = json.loads(file.readline())
                return answer

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)


def spawn(
    folder: Path, name: str, model: Path, *options: str, before: Sequence[str] = (), **env: str
) -> Spawned:
    """Returns at once; `ready` waits. `before`: a command that becomes it."""
    home = folder / name
    home.mkdir(parents=True)
    key = folder / "key"
    key.write_bytes(b"k" * 32)
    argv = [
        *before,
        sys.executable,
        "-m",
        "runtimes.vllm_pd",
        "--model",
        str(model),
        "--port",
        "0",
        "--host",
        "127.0.0.1",
    ]
    argv += ["--served-model-name", NAME, *options]
    given = {
        "GALAXY_INSTANCE_DIR": str(home),
        "GALAXY_INSTANCE_ID": name,
        "GALAXY_CLUSTER_KEY_FILE": str(key),
        "GALAXY_GENERATION": "1",
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **given, **env}, stdout=log, stderr=log)
    made = Spawned(home, process.pid)
    made.process = process
    return made


def decode(
    folder: Path,
    name: str,
    model: Path,
    prefill: Instance,
    rung: str,
    *options: str,
    before: Sequence[str] = (),
    **env: str,
) -> Spawned:
    """Every prompt of it is computed by `prefill`."""
    peers = {"GALAXY_PREFILL_PEERS": f"127.0.0.1:{prefill.port}", **env}
    always = ("--role", "decode", "--pd", "always", "--pd-threshold-tokens", "1", "--kv-transfer", rung)
    return spawn(folder, name, model, *always, *options, before=before, **peers)


def prompt(seed: int, length: int) -> list[int]:
    """Token ids of the tiny model that are text."""
    rng = random.Random(seed)
    return [rng.randrange(3, 260) for _ in range(length)]


def transfer(answer: Any) -> tuple[str, dict[str, str]]:
    """The rung that brought the prompt's KV, and what is told of it."""
    rung, *rest = answer.headers.get("x-kv-transfer", "none").split(";")
    return rung, dict(part.split("=") for part in rest)


def gpu_used_mib() -> int:
    """Of the first GPU, by all processes; 0 = there is none."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    return int(found.stdout.split()[0])


def stop_all(instances: Sequence[Spawned]) -> None:
    for instance in instances:
        if instance.process.poll() is None:
            instance.process.send_signal(signal.SIGTERM)
    for instance in instances:
        instance.stop()


class Clock:
    """Prints what is done with the time since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)
