"""A standby pod of level S2 on a GPU that is nearly full: what sleepers keep, who goes for whom, what is survived.

`python -m bench.standby_room_gpu`: the slot, its engines (vLLM's, the tiny model) and the GPU are real, the agent is
played. First one engine says what it keeps in its sleep. Then four are planned with a share of the GPU that is
free beside two sleepers and not beside three: three sleep, the fourth is left out, and a plain process with its
arguments is refused by vLLM itself. A revision asks for the fourth: the oldest sleeper goes, it is forked, and sleeps
in that one's place afterwards. Then a process takes what is free: a wake ends the oldest again, and one that could
not fit is refused with nobody ended. Last a slot that counts nothing wakes an engine into a full GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import torch

from autoscaler_shim.slot.gpus import Gpus
from bench import gpu_instances as gpu
from bench import standby_gpu as standby
from bench.record import record
from kserve_ext.core.standby.room import CONTEXT_MIB
from kserve_ext.wire.slot_socket import State
from tests.support.standby_pod import Pod, standby_pod
from tools.setup.tiny_model import make

NAMES: Final = ("a", "b", "c", "d")
#: Takes all of the GPU but so many MiB, until its input ends.
HOG: Final = """
import sys, torch
torch.zeros(1, device="cuda")
free = torch.cuda.mem_get_info()[0] - (int(sys.argv[1]) << 20)
held = torch.empty(max(0, free), dtype=torch.uint8, device="cuda")
print("full", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def full(leave_mib: int) -> Iterator[None]:
    """Somebody else has the rest of the GPU."""
    command = [sys.executable, "-c", HOG, str(leave_mib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hog:
        assert hog.stdout is not None
        if hog.stdout.readline().strip() != "full":
            raise standby.Failed("nothing takes the GPU's memory")
        yield
        assert hog.stdin is not None
        hog.stdin.close()


def held() -> dict[int, int]:
    """MiB by process."""
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return {int(pid): int(mib) for pid, mib in re.findall(r"(\d+), (\d+)", said)}


@contextlib.asynccontextmanager
async def slot(models: dict[str, Path], args: argparse.Namespace, **env: str) -> AsyncIterator[Pod]:
    """As soon as it has said that it is ready; it must end with 0."""
    async with standby_pod(run=False) as pod:
        engines = [
            {"name": name, "model": str(model), "argv": standby.argv(model, name, args)}
            for name, model in models.items()
        ]
        await pod.run(
            **{
                "GALAXY_ZYGOTE": standby.RUNTIME,
                "GALAXY_SLOT_LEVEL": "S2",
                "GALAXY_SLOT_ENGINES": json.dumps({"env": standby.VARIABLES, "engines": engines}),
                "GALAXY_SLOT_HOST_MIB": str(args.host_mib),
                **env,
            }
        )
        try:
            yield pod
            pod.terminate()
            if (code := await pod.ended()) != 0 or pod.processes():
                raise standby.Failed(f"the pod ended with {code} and left {pod.processes()}")
        except BaseException:
            print(pod.log.read_text(errors="replace")[-12_000:], flush=True)
            raise


async def settled(pod: Pod, asleep: str, gave_up: str = "") -> State:
    """Raises Failed."""
    state = await pod.agent.until(lambda it: it.state in ("ready", "failed"), standby.LONGEST_S)
    if state.state != "ready" or "".join(state.asleep) != asleep or gave_up not in state.reason:
        raise standby.Failed(f"{asleep} should sleep: {state}")
    return state


async def refused(pod: Pod, engine: str, model: Path, args: argparse.Namespace) -> str:
    """Why its revision is not served here; then it is given back. Raises Failed."""
    asked = standby.revision(pod, f"{engine}-refused", engine, model, args)
    pod.agent.start(asked)
    state = await pod.agent.until(lambda it: it.state in ("serving", "failed"), standby.LONGEST_S)
    if state.state != "failed":
        raise standby.Failed(f"{engine} was to be refused: {state}")
    return state.reason


def kept(pod: Pod) -> list[int]:
    """By each sleep, as the slot has counted it."""
    return [int(mib) for mib in re.findall(r"GPU back and keeps (\d+)", pod.log.read_text(errors="replace"))]


def refused_by_vllm(folder: Path, model: Path, args: argparse.Namespace) -> str:
    """What vLLM says to a start beside the sleepers. Raises Failed."""
    one = gpu.spawn(folder, "beside-sleepers", model, *standby.options(args), standby.SLEEPS)
    try:
        one.ready()
    except RuntimeError as error:
        found = re.search(r"Free memory on device.*?less than desired.*?\)", str(error), re.DOTALL)
        if found is None:
            raise standby.Failed(f"another error: {error}") from error
        return " ".join(found[0].split())
    finally:
        one.stop()
    raise standby.Failed("vLLM started beside three sleepers")


async def crowd(
    folder: Path, right: list[list[int]], args: argparse.Namespace, clock: gpu.Clock
) -> list[dict[str, Any]]:
    """Rows. Raises Failed."""
    model = folder / "tiny"
    models = dict.fromkeys(NAMES, model)
    tokens = dict.fromkeys(NAMES, right)
    gpus = Gpus("")
    empty = gpus.memory()
    if empty is None:
        raise standby.Failed("NVML says nothing")
    clock.say(f"GPU: {empty} by NVML; by CUDA, in a process with its context {cuda_says()}")
    async with slot({"a": model}, args) as pod:
        await settled(pod, "a")
        one = kept(pod)[-1]
        clock.say(f"one sleeper keeps {one} MiB; by process {held()}")
    args.share = round((empty.total_mib - CONTEXT_MIB - 2.5 * one) / empty.total_mib, 4)
    turns: list[standby.Turn] = []

    async def turn(pod: Pod, name: str, level: str) -> standby.Turn:
        asked = standby.revision(pod, f"{name}-{len(turns)}", name, model, args)
        turns.append(await standby.turn(pod, asked, tokens[name], level, clock))
        return turns[-1]

    async with slot(models, args) as pod:
        began = time.monotonic()
        state = await settled(pod, "abc", "d does not sleep here: the GPU has no room")
        clock.say(f"share {args.share}: {state}, after {time.monotonic() - began:.1f} s; by process {held()}")
        said = await asyncio.to_thread(refused_by_vllm, folder, model, args)
        clock.say(f"beside three sleepers vLLM says: {said}")
        for name in "cab":
            await turn(pod, name, "S2")
        forked = await turn(pod, "d", "S0")
        log = pod.log.read_text(errors="replace")
        went = re.findall(r"engine (\w): (it was ended for [^\"\n]*)", log)
        clock.say(f"who went: {went}")
        if [name for name, _ in went] != ["c"]:
            raise standby.Failed(f"c was the one asked for longest ago: {went}")
        for name in "abd":
            await turn(pod, name, "S2")
        with full(700):
            asked = standby.revision(pod, "b-full", "b", model, args)
            began = time.monotonic()
            pod.agent.start(asked)
            state = await pod.agent.until(lambda it: it.state in ("serving", "failed"), standby.LONGEST_S)
            crowded_s = time.monotonic() - began
            clock.say(f"700 MiB free: {crowded_s:.3f} s: {state}")
            if state.started is None or state.started.level != "S2" or state.asleep != ("d",):
                raise standby.Failed(f"b was to be woken in a's place: {state}")
        got = await asyncio.to_thread(standby.completion, pod.host, 8012, "b", standby.PROMPTS[1])
        if got != right[1]:
            raise standby.Failed(f"b in a full GPU: {got}")
        ended_ms = dict(state.started.steps)["sleepers_ended"]
        with full(100):
            pod.agent.free(asked.revision)
            await settled(pod, "bd")
        with full(20):
            why = await refused(pod, "d", model, args)
            clock.say(f"20 MiB free: {why}")
        if "sleepers that may go for it keep" not in why:
            raise standby.Failed(f"nobody was to be ended in vain: {why}")
        pod.agent.free("team-a/d-refused")
        state = await pod.agent.until(lambda it: it.state == "ready", standby.LONGEST_S)
        clock.say(f"with the GPU free again: {state}")
        all_kept = kept(pod)
    async with slot({"a": model, "b": model}, args, GALAXY_SLOT_NVML="/no/such/library") as pod:
        await settled(pod, "ab")
        with full(100):
            why = await refused(pod, "a", model, args)
            clock.say(f"a slot that counts nothing, a wake into a full GPU: {why}")
        if "out of memory" not in why.lower():
            raise standby.Failed(f"it was to say that memory was short: {why}")
        pod.agent.free("team-a/a-refused")
        clock.say(f"then: {await settled(pod, 'b', 'a does not sleep here')}")
        await turn(pod, "b", "S2")
    woken = [one.token_s for one in turns if one is not forked]
    return [
        row(
            "MiB that a sleeper keeps",
            float(one),
            "MiB",
            f"{min(all_kept)} to {max(all_kept)} in {len(all_kept)} sleeps",
        ),
        row(
            "order to first completion, of a wake", sorted(woken)[len(woken) // 2], "s", f"{len(woken)} wakes"
        ),
        row("order to serving, forked in the oldest sleeper's place", forked.serving_s, "s", said),
        row(
            "order to serving, woken in the oldest sleeper's place",
            crowded_s,
            "s",
            f"{ended_ms} ms of it until it was gone",
        ),
    ]


def row(what: str, ours: float, unit: str, seen: str) -> dict[str, Any]:
    return {
        "metric": f"standby slot S2, nearly full GPU: {what}",
        "ours": round(ours, 4),
        "peer": None,
        "peer_name": "",
        "unit": unit,
        "better": "lower",
        "conditions": seen,
    }


def cuda_says() -> str:
    code = "import torch; torch.zeros(1, device='cuda'); print([x >> 20 for x in torch.cuda.mem_get_info()])"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.standby_room_gpu", description=__doc__)
    parser.add_argument("--host-mib", type=int, default=64 << 10, help="of the pod's memory")
    parser.add_argument("--compiled", action="store_true", help="compiled, and CUDA graphs")
    parser.add_argument("--folder", type=Path, help="of models and logs; kept")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("standby_room_gpu: there is no GPU here")
        return 0
    args.share, args.layers = 0.1, 0
    clock = gpu.Clock()
    for name, value in zip(standby.VARIABLES, ("0", "1"), strict=True):
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder / "tiny")
        right, _ = standby.wanted({"tiny": folder / "tiny"}, folder, args, clock)
        rows = asyncio.run(crowd(folder, right["tiny"], args, clock))
    told = standby.conditions(args)
    record("standby_room_gpu", [{**one, "conditions": f"{told}; {one['conditions']}"} for one in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
