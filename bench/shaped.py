"""Time from a request to its first token on a shaped engine, beside a plain vLLM server (`make bench-shaped`).

Ours: a zygote of a standby pod (level S1) with its shaped engine; the clock runs from the order that makes it a
service's to the first token's event of a streamed completion, which is asked as soon as it says that it is ready, as
the pod's front does. Beside it the same zygote without one (S0). Plain: vLLM's own server, from the start of its
process to the first token of the same request. Rounds are interleaved; the median counts. Each round has weights of
its own, which no process has seen before; what stands ready has seen a config.json. Engines that sleep (level S2)
have no part in this: they have loaded their weights before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import quiet
from bench.coldstart import ROOT, TIMEOUT_S, first_token, plain_round
from bench.record import record
from tools.setup.layout import Layout

OPTIONS = ["--max-model-len", "2048", "--dtype", "float32"]
#: Marks of the instance, in the words of `galaxy explain`; each with what came before it.
STEPS = {
    "shape_taken": "arguments and config.json compared",
    "listening": "port open",
    "engine_ready": "tokenizer and request handling",
    "weights_into_shape": "HTTP routes, and the weights",
    "first_token": "the engine's own first token",
}


class Zygote:
    """As a slot keeps one."""

    def __init__(self, folder: Path, shape: Path | None) -> None:
        self.path, self.folder = folder / "zygote.sock", folder
        env = {**os.environ, "GALAXY_SLOT_LEVEL": "S0"}
        if shape is not None:
            given = " ".join(["--model", str(shape), *OPTIONS])
            env |= {"GALAXY_SLOT_LEVEL": "S1", "GALAXY_SLOT_SHAPE": given}
        command = [sys.executable, "-m", "runtimes.vllm_pd.zygote", "--socket", str(self.path), "--name", "b"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.server = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(self.path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer: dict[str, Any] = json.loads(file.readline())
                return answer

    def wait_ready(self) -> None:
        self.until(self.path.exists)
        self.until(lambda: self.ask({"ping": True})["ready"])

    def until(self, condition: Callable[[], Any], pause_s: float = 0.05) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the zygote has not come so far: {(self.folder / 'log').read_text()[-2000:]}"
                )
            time.sleep(pause_s)

    def serve(self, model: Path) -> tuple[float, dict[str, float]]:
        """Seconds to the first token of a request that finds nothing, and when what was reached (ms)."""
        began, wall = time.monotonic(), time.time()
        argv = [
            "--model",
            str(model),
            "--port",
            "0",
            "--host",
            "127.0.0.1",
            "--served-model-name",
            "tiny",
            *OPTIONS,
        ]
        request = {"argv": argv, "env": {"GALAXY_INSTANCE_DIR": str(self.folder)}, "stdio": "inherit"}
        self.server = self.ask({**request, "instance_dir": str(self.folder)})["pid"]
        self.until(lambda: self.status().get("phase") == "ready", 0.001)
        first_token(int(self.status()["port"]), "tiny")
        took = time.monotonic() - began
        return took, {e["name"]: 1000 * (e["at"] - wall) for e in self.status()["events"]}

    def status(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            return {}
        if facts["phase"] == "failed":
            raise RuntimeError(f"the start failed: {facts['error']}")
        return facts

    def stop(self) -> None:
        left = self.ask({"ping": True}).get("kept") if self.process.poll() is None else 0
        pids = [pid for pid in (self.server, left, self.process.pid) if isinstance(pid, int) and pid]
        for pid in reversed(pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(20)


def our_round(model: Path, shape: Path | None) -> tuple[float, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        zygote = Zygote(Path(folder), shape)
        try:
            zygote.wait_ready()
            return zygote.serve(model)
        finally:
            zygote.stop()


def fresh(model: Path, folder: Path, seed: int) -> Path:
    """The model with weights of its own."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, folder)
    draw = np.random.default_rng(seed)
    weights = {
        name: w if w.ndim == 1 else draw.permutation(w.reshape(-1)).reshape(w.shape)
        for name, w in load_file(model / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def breakdown(rounds: list[dict[str, float]], totals: list[float]) -> str:
    """Medians, each step from the one before it."""
    at, parts = 0.0, []
    for name, what in STEPS.items():
        reached = statistics.median(marks[name] for marks in rounds)
        parts.append(f"{what} {reached - at:.0f}")
        at = reached
    parts.append(f"the request {1000 * statistics.median(totals) - at:.0f}")
    return "ms: " + ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    model = Layout.of_user().tiny_model
    times: dict[str, list[float]] = {"plain": [], "S1": [], "S0": []}
    marks: list[dict[str, float]] = []
    watch = quiet.Watch()
    with tempfile.TemporaryDirectory() as folder:
        shape = Path(folder) / "shape"
        shape.mkdir()
        shutil.copy(model / "config.json", shape)
        for k in range(rounds):
            service = fresh(model, Path(folder) / f"m{k}", k)
            times["plain"].append(plain_round(service, 1))
            took, reached = our_round(service, shape)
            times["S1"].append(took)
            marks.append(reached)
            times["S0"].append(our_round(service, None)[0])
            print({name: [round(s, 3) for s in values] for name, values in times.items()}, flush=True)
    verdict = watch.verdict()
    text = breakdown(marks, times["S1"])
    print(text)
    print(verdict.text)
    plain = statistics.median(times["plain"])
    rows = []
    for level, what in (("S1", text), ("S0", "zygote with its imports done")):
        ours = statistics.median(times[level])
        rows.append(
            {
                "metric": f"request to first token on a standby of level {level}",
                "ours": round(ours, 4),
                "peer": round(plain, 3),
                "peer_name": "start of a plain vLLM server",
                "unit": "s",
                "better": "lower",
                "ratio": round(plain / ours, 2),
                "conditions": f"tiny model, CPU, fp32, median of {rounds}; {what}; {verdict.text}",
            }
        )
    record("shaped", rows, refused=verdict.refused)
    return 0


if __name__ == "__main__":
    sys.exit(main())
