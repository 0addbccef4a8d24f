"""A standby pod of level S2 with vLLM's own engines on a GPU: what sleep gives back, and how long a wake takes.

`python -m bench.standby_gpu`: the slot and all below it are real processes; the node agent is played. Two engines
load one after the other and sleep: the tiny model, and one with as many layers and weights as Llama-3-8B's.
Revisions wake them in turn, each time another one, and ask for greedy tokens, which must be those of a process that
never slept. An engine that is killed in its sleep must come back. Beside that a plain vLLM server is told by its own
endpoints, as the slot tells runtimes that have no control socket. Without a GPU it is a rehearsal: vLLM on CPUs
refuses to sleep, so the slot gives its engines up and forks; nothing is recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autoscaler_shim.slot import orders
from bench import gpu_instances as gpu
from bench.gpu_models import large
from bench.processes import end_group, well
from bench.record import record
from kserve_ext.core.standby.facts import Assignment
from kserve_ext.rpc.ports import free_port
from tests.engine.instances import ROOT, until
from tests.support.standby_pod import Pod, assignment, standby_pod
from tools.setup.tiny_model import make

RUNTIME = "runtimes.vllm_pd"
SLEEPS = "--enable-sleep-mode"
COUNT = 24  # tokens of an answer
PROMPTS = [[7, 8, 9], gpu.prompt(1, 300), gpu.prompt(2, 1500)]
LONGEST_S = 300.0
#: What engines read before they begin; the plan of a pod names them.
VARIABLES = ("VLLM_USE_FLASHINFER_SAMPLER", "HF_HUB_OFFLINE")


class Failed(Exception):
    """An engine answered wrongly, or a slot did."""


class Turn(NamedTuple):
    """One revision, from the order that starts it until its engine sleeps again."""

    engine: str
    serving_s: float
    token_s: float  # from the order to the end of a completion of one token
    wake_s: float  # of these, as the slot says it
    awake_mib: int  # of the GPU, by all processes
    freed_s: float
    sleep_s: float
    asleep_mib: int


def options(args: argparse.Namespace) -> list[str]:
    if not torch.cuda.is_available():
        return ["--max-model-len", "2048", "--dtype", "float32"]
    given = ["--max-model-len", "2048", "--dtype", "bfloat16", "--attention-backend", "FLASH_ATTN"]
    given += ["--gpu-memory-utilization", str(args.share), "--kv-cache-memory-bytes", str(1 << 30)]
    return given if args.compiled else [*given, "--enforce-eager"]


def completion(host: str, port: int, name: str, prompt: Sequence[int], count: int = COUNT) -> list[int]:
    body = {"model": name, "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}
    connection = http.client.HTTPConnection(host, port, timeout=LONGEST_S)
    try:
        data = json.dumps({**body, "return_token_ids": True})
        connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise Failed(f"{name}: {answer.status} {said[:500]!r}")
        tokens: list[int] = json.loads(said)["choices"][0]["token_ids"]
        return tokens
    finally:
        connection.close()


# --- those that never sleep, and one that is told by HTTP


def wanted(
    models: dict[str, Path], folder: Path, args: argparse.Namespace, clock: gpu.Clock
) -> tuple[dict[str, list[list[int]]], dict[str, float]]:
    """Tokens of a process for each model, and the seconds from its start until it was ready."""
    made: dict[str, gpu.Spawned] = {}
    try:
        began = time.monotonic()
        for name, model in models.items():
            made[name] = gpu.spawn(folder, f"plain-{name}", model, *options(args))
        tokens, took = {}, {}
        for name, one in made.items():
            one.ready()
            took[name] = time.monotonic() - began
            tokens[name] = [completion("127.0.0.1", one.port, gpu.NAME, prompt) for prompt in PROMPTS]
            clock.say(f"{name} in a process of its own is ready after {took[name]:.1f} s")
        return tokens, took
    finally:
        gpu.stop_all(list(made.values()))


def by_endpoints(
    model: Path, right: list[list[int]], folder: Path, args: argparse.Namespace, clock: gpu.Clock
) -> str:
    """vLLM's own server sleeps and wakes as the slot tells it. What was seen. Raises Failed."""
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), SLEEPS]
    command += [
        "--served-model-name",
        gpu.NAME,
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        *options(args),
    ]
    env = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True
        )
    try:
        until(
            lambda: well(port) or server.poll() is not None,
            f"vLLM's server: {log.read_text()[-2000:]}",
            LONGEST_S,
        )
        if server.poll() is not None:
            raise Failed(f"vLLM's server ended: {log.read_text()[-3000:]}")
        seen = []
        for turn in range(2):
            if (got := [completion("127.0.0.1", port, gpu.NAME, prompt) for prompt in PROMPTS]) != right:
                raise Failed(f"vLLM's server, turn {turn}: {got}, not {right}")
            awake, began = gpu.gpu_used_mib(), time.monotonic()
            asyncio.run(orders.sleep(folder / "no-such-folder", port))
            slept, asleep = time.monotonic() - began, gpu.gpu_used_mib()
            began = time.monotonic()
            asyncio.run(orders.wake(folder / "no-such-folder", port, turn + 2))
            seen.append(
                f"asleep in {slept:.3f} s, {awake - asleep} MiB freed, awake in {time.monotonic() - began:.3f} s"
            )
        if completion("127.0.0.1", port, gpu.NAME, PROMPTS[1]) != right[1]:
            raise Failed("vLLM's server has other tokens after its last wake")
        clock.say(f"vLLM's server, by its endpoints: {'; '.join(seen)}")
        return seen[-1]
    finally:
        end_group(server)


# --- the pod


def argv(model: Path, name: str, args: argparse.Namespace) -> list[str]:
    command = ["python", "-m", RUNTIME, "--model", str(model), "--served-model-name", name]
    return [*command, *options(args), SLEEPS]


def revision(pod: Pod, name: str, engine: str, model: Path, args: argparse.Namespace) -> Assignment:
    given = [*argv(model, engine, args), "--port", "$(PORT)"]
    if not torch.cuda.is_available():
        given.remove(SLEEPS)
    return assignment(pod.folder, name, argv=tuple(given), model=(), engine=engine)


def said(pod: Pod, engine: str, what: str) -> list[float]:
    """Seconds, of each time that the slot has done it."""
    pattern = rf"engine {engine}: {what}, ([\d.]+) s"
    return [float(found) for found in re.findall(pattern, pod.log.read_text(errors="replace"))]


async def turn(pod: Pod, asked: Assignment, right: list[list[int]], level: str, clock: gpu.Clock) -> Turn:
    name, woken = asked.engine, len(said(pod, asked.engine, "wake"))
    began = time.monotonic()
    pod.agent.start(asked)
    state = await pod.agent.until(lambda it: it.state in ("serving", "failed"), LONGEST_S)
    serving_s = time.monotonic() - began
    if state.state != "serving" or state.started is None or state.started.level != level:
        raise Failed(f"{asked.revision}: {state}")
    await asyncio.to_thread(completion, pod.host, 8012, name, [5, 6, 7], 1)
    token_s = time.monotonic() - began
    got = [await asyncio.to_thread(completion, pod.host, 8012, name, prompt) for prompt in PROMPTS]
    if got != right:
        raise Failed(f"{asked.revision}: {got}, not {right}")
    awake_mib = gpu.gpu_used_mib()
    began = time.monotonic()
    pod.agent.free(asked.revision)
    state = await pod.agent.until(lambda it: it.state in ("ready", "failed"), LONGEST_S)
    freed_s = time.monotonic() - began
    if state.state != "ready" or (level == "S2" and name not in state.asleep):
        raise Failed(f"{asked.revision} is freed: {state}")
    wakes = said(pod, name, "wake")[woken:] or [0.0]
    sleeps = said(pod, name, "sleep")[-1:] or [0.0]
    made = Turn(name, serving_s, token_s, wakes[0], awake_mib, freed_s, sleeps[0], gpu.gpu_used_mib())
    clock.say(f"{asked.revision}: {made}; {state.asleep} sleep")
    return made


async def killed_in_its_sleep(pod: Pod, name: str, others: int, clock: gpu.Clock) -> None:
    """It must come back. Raises Failed."""
    [pid] = [
        pid
        for pid, line in pod.processes().items()
        if f"--served-model-name {name}" in line and "autoscaler_shim" not in line
    ]
    before, began = gpu.gpu_used_mib(), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await pod.agent.until(lambda it: it.state == "warming", LONGEST_S)
    state = await pod.agent.until(lambda it: it.state in ("ready", "failed"), LONGEST_S)
    if state.state != "ready" or len(state.asleep) != others:
        raise Failed(f"{name} was killed in its sleep: {state}")
    clock.say(
        f"{name} was killed in its sleep, and sleeps again after {time.monotonic() - began:.1f} s; "
        f"{before} MiB of the GPU before, {gpu.gpu_used_mib()} after"
    )


async def serve(
    models: dict[str, Path], right: dict[str, list[list[int]]], args: argparse.Namespace, clock: gpu.Clock
) -> tuple[list[Turn], dict[str, Any]]:
    """What each turn took, and facts of the pod. Raises Failed."""
    level = "S2" if torch.cuda.is_available() else "S0"
    empty = gpu.gpu_used_mib()
    async with standby_pod(run=False) as pod:
        engines = [
            {"name": name, "model": str(model), "argv": argv(model, name, args)}
            for name, model in models.items()
        ]
        began = time.monotonic()
        await pod.run(
            GALAXY_ZYGOTE=RUNTIME,
            GALAXY_SLOT_LEVEL="S2",
            GALAXY_SLOT_ENGINES=json.dumps({"env": VARIABLES, "engines": engines}),
            GALAXY_SLOT_HOST_MIB=str(args.host_mib),
        )
        state = await pod.agent.until(lambda it: it.state in ("ready", "failed"), LONGEST_S)
        asleep_mib, took_s = gpu.gpu_used_mib(), time.monotonic() - began
        clock.say(f"the pod is {state.state} after {took_s:.1f} s, {asleep_mib} MiB of the GPU: {state}")
        if level == "S2" and (state.state, state.asleep) != ("ready", tuple(models)):
            raise Failed(f"the pod: {state}")
        turns = []
        for n in range(args.rounds):
            for name, model in models.items():
                asked = revision(pod, f"{name}-{n + 1}", name, model, args)
                turns.append(await turn(pod, asked, right[name], level, clock))
        if level == "S2":
            name = next(iter(models))
            await killed_in_its_sleep(pod, name, len(models), clock)
            asked = revision(pod, f"{name}-again", name, models[name], args)
            await turn(pod, asked, right[name], level, clock)
        pod.terminate()
        if (code := await pod.ended()) != 0 or pod.processes():
            raise Failed(f"the pod ended with {code} and left {pod.processes()}")
        clock.say(f"the pod has ended; {gpu.gpu_used_mib()} MiB of the GPU, {empty} before it")
    return turns, {"empty": empty, "asleep": asleep_mib}


def rows(
    turns: list[Turn], facts: dict[str, Any], took: dict[str, float], told: str, endpoints: str
) -> list[dict[str, Any]]:
    made = []
    for name in dict.fromkeys(one.engine for one in turns):
        own = [one for one in turns if one.engine == name]
        freed = sorted(one.awake_mib - one.asleep_mib for one in own)
        seen = (
            f"{len(own)} turns, each a revision of its own; {freed[0]} to {freed[-1]} MiB of the GPU freed; "
            f"GPU: {facts['empty']} MiB before the pod, {facts['asleep']} with all asleep; "
            "tokens as of a process that never slept"
        )
        if endpoints and name == "tiny":
            seen += f"; vLLM's own server by its endpoints: {endpoints}"
        told_s = {
            "wake, order to serving": [one.serving_s for one in own],
            "wake by itself": [one.wake_s for one in own],
            "wake, order to first completion": [one.token_s for one in own],
            "sleep, order to ready again": [one.freed_s for one in own],
            "sleep by itself": [one.sleep_s for one in own],
        }
        for what, found in told_s.items():
            against = took[name] if "order to serving" in what else None
            spread = f"{min(found):.3f} to {max(found):.3f} s"
            made.append(
                {
                    "metric": f"standby slot S2, {name}: {what}",
                    "ours": round(statistics.median(found), 4),
                    "peer": round(against, 2) if against else None,
                    "peer_name": "start of a process with that engine" if against else "",
                    "unit": "s",
                    "better": "lower",
                    "conditions": f"{told}; {spread}; {seen}",
                }
            )
    return made


def conditions(args: argparse.Namespace) -> str:
    import vllm

    how = "compiled, CUDA graphs" if args.compiled else "eager"
    versions = f"vLLM {vllm.__version__}, torch {torch.__version__}"
    sizes = f"large: {args.layers} layers of Llama-3-8B's, random weights" if args.layers else "no large one"
    return f"{torch.cuda.get_device_name(0)}; {versions}, bf16, {how}; 1 GiB of KV cache each; {sizes}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.standby_gpu", description=__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--layers", type=int, default=32 if on_gpu else 0, help="of the large model; 0: none")
    parser.add_argument("--compiled", action="store_true", help="compiled, and CUDA graphs")
    parser.add_argument("--no-endpoints", action="store_true", help="no plain server")
    parser.add_argument("--host-mib", type=int, default=64 << 10, help="of the pod's memory")
    parser.add_argument("--share", type=float, default=0.1, help="of the GPU, that an engine asks for")
    parser.add_argument("--folder", type=Path, help="of models and logs; kept")
    args = parser.parse_args()
    clock = gpu.Clock()
    for name, value in zip(VARIABLES, ("0", "1"), strict=True):
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder / "tiny")
        models = {"tiny": folder / "tiny"}
        if args.layers:
            models["large"] = folder / "large"
            # In a process of its own: it leaves nothing on the GPU.
            writer = multiprocessing.get_context("spawn").Process(
                target=large, args=(models["large"], args.layers)
            )
            writer.start()
            writer.join()
            if writer.exitcode:
                raise Failed(f"the large model could not be written: exit code {writer.exitcode}")
            clock.say("the large model is written")
        right, took = wanted(models, folder, args, clock)
        endpoints = ""
        if on_gpu and not args.no_endpoints:
            endpoints = by_endpoints(models["tiny"], right["tiny"], folder, args, clock)
        turns, facts = asyncio.run(serve(models, right, args, clock))
    if not on_gpu:
        print("standby_gpu: no GPU here: a rehearsal, nothing is recorded")
        return 0
    record("standby_gpu", rows(turns, facts, took, conditions(args), endpoints))
    return 0


if __name__ == "__main__":
    sys.exit(main())
