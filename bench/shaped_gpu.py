"""A shaped engine on a GPU beside a plain vLLM server: from the request to its first token.

`python -m bench.shaped_gpu`: as bench/shaped.py does on a CPU; ours from the order that makes it a service's,
plain from the start of the process. Both as vLLM starts by default (compiled, CUDA graphs) and with
`--enforce-eager`. The plain server is warm: what it compiles is on disk from a start before. Greedy tokens of three
prompts must be equal. Without a GPU it is a rehearsal of the script.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench import gpu_instances as gpu
from bench import shaped
from bench.coldstart import ROOT, TIMEOUT_S, first_token
from bench.processes import end_group, well
from bench.record import record
from kserve_ext.rpc.ports import free_port
from tools.setup.tiny_model import make

PROMPTS = [[7, 8, 9], gpu.prompt(1, 300), gpu.prompt(2, 1500)]


def tokens(port: int) -> list[list[int]]:
    found = []
    for asked in PROMPTS:
        body = {"model": gpu.NAME, "prompt": asked, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        data = json.dumps({**body, "return_token_ids": True})
        connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
        found.append(json.loads(connection.getresponse().read())["choices"][0]["token_ids"])
        connection.close()
    return found


def plain(model: Path, options: list[str], log: Path) -> tuple[float, list[list[int]]]:
    """Seconds from the start of vLLM's own server to the first token, and its tokens."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", gpu.NAME, "--port", str(port), "--host", "127.0.0.1", *options]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True
        )
    try:
        while not well(port):
            if process.poll() is not None or time.monotonic() - began > TIMEOUT_S:
                raise RuntimeError(f"the plain server did not start: {log.read_text()[-6000:]}")
            time.sleep(0.02)
        first_token(port, gpu.NAME)
        return time.monotonic() - began, tokens(port)
    finally:
        end_group(process)


def ours(
    model: Path, shape: Path | None, folder: Path, clock: gpu.Clock
) -> tuple[float, dict[str, float], list[list[int]]]:
    folder.mkdir()
    began = time.monotonic()
    zygote = shaped.Zygote(folder, shape)
    try:
        zygote.wait_ready()
        clock.say(f"the standby is there after {time.monotonic() - began:.1f} s")
        took, marks = zygote.serve(model)
        return took, marks, tokens(int(zygote.status()["port"]))
    except BaseException:
        print((folder / "log").read_text()[-6000:], flush=True)
        raise
    finally:
        zygote.stop()


def measure(
    name: str, options: list[str], folder: Path, rounds: int, clock: gpu.Clock
) -> list[dict[str, Any]]:
    shaped.OPTIONS[:] = options
    model, shape = folder / "model", folder / "shape"
    times: dict[str, list[float]] = {"S1": [], "S0": [], "plain": []}
    marks: list[dict[str, float]] = []
    cold, _ = plain(model, options, folder / f"{name}-cold.log")
    clock.say(f"{name}: plain, cold: {cold:.2f} s")
    for k in range(rounds):
        service = shaped.fresh(model, folder / f"{name}-m{k}", k)
        took, wanted = plain(service, options, folder / f"{name}-plain{k}.log")
        times["plain"].append(took)
        clock.say(f"{name}: plain: {took:.2f} s")
        for level in ("S1", "S0"):
            took, reached, got = ours(
                service, shape if level == "S1" else None, folder / f"{name}-{level}-{k}", clock
            )
            times[level].append(took)
            clock.say(f"{name}: {level}: {took:.3f} s")
            if got != wanted:
                raise AssertionError(f"{name}, {level}: {got} instead of {wanted}")
            if level == "S1":
                marks.append(reached)
    text = shaped.breakdown(marks, times["S1"])
    clock.say(text)
    peer = statistics.median(times["plain"])
    return [
        {
            "metric": f"request to first token on a standby of level {level}, GPU, {name}",
            "ours": round(statistics.median(times[level]), 4),
            "peer": round(peer, 3),
            "peer_name": "start of a plain vLLM server, warm",
            "unit": "s",
            "better": "lower",
            "conditions": f"median of {rounds}; plain without its compile cache {cold:.1f} s; "
            + (text if level == "S1" else "zygote with its imports done"),
        }
        for level in ("S1", "S0")
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shaped_gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=("eager", "compiled"))
    parser.add_argument("--folder", type=Path, help="of the logs; kept")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    clock = gpu.Clock()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder / "model")
        (folder / "shape").mkdir()
        shutil.copy(folder / "model" / "config.json", folder / "shape")
        for mode in args.modes:
            options = ["--max-model-len", "2048", "--dtype", "bfloat16" if on_gpu else "float32"]
            options += gpu.ON_GPU if on_gpu else []
            options += ["--enforce-eager"] if mode == "eager" or not on_gpu else []
            found = measure(mode, options, folder, args.rounds, clock)
            rows += found
    if not on_gpu:
        print("shaped_gpu: no GPU here: a rehearsal, nothing is recorded")
        return 0
    import vllm

    versions = f"vLLM {vllm.__version__}, torch {torch.__version__}"
    conditions = f"{torch.cuda.get_device_name(0)}, {versions}; tiny model, bf16"
    for row in rows:
        row["conditions"] = f"{conditions}; {row['conditions']}"
    record("shaped_gpu", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
