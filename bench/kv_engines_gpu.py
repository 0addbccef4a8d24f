"""Two vLLM engines on a GPU: a prompt computed by one goes on at the other with the tokens of a single engine.

`python -m bench.kv_engines_gpu`: a prefill and a decode instance for each rung, one engine that does both as judge.
Greedy tokens of every prompt must be equal, and its KV must have come by the rung that was asked for. Then decode and
prefill sleep and wake in turn (vLLM's sleep mode): the device's memory is given back, the cache is registered anew in
a new generation, and prompts after that are right again. Times are from the request to its first token, and of the
transfer by itself; the peer is the single engine. Without a GPU it is a rehearsal of the script: nothing sleeps,
nothing is recorded.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench import gpu_instances as gpu
from bench.record import record
from tests.engine.instances import until

LENGTHS = (5, 16, 17, 130, 700, 1500, 3900)
COUNT = 24  # tokens of an answer
#: At 16 bits a prompt's last token, computed by itself, is rounded otherwise than with the prompt: tokens whose
#: probabilities differ by less (logarithms) may change places.
ROUNDING = 0.15
#: Of a rung that is asked for, those that a transfer takes where they are quicker.
MAY_TAKE = {"ipc": ("ipc", "shm")}
LAYERS = 32  # of the tiny model, so that 3,900 tokens are 64 MB


Keep = Callable[[list[dict[str, Any]]], None]


class Failed(Exception):
    """An engine answered wrongly."""


def compare(judge: gpu.Spawned, instance: gpu.Spawned, rung: str, seed: int, length: int) -> dict[str, str]:
    """What is told of the transfer. Raises Failed."""
    asked = gpu.prompt(seed, length)
    wanted, _ = judge.tokens(asked, COUNT)
    got, answer = instance.tokens(asked, COUNT)
    used, facts = gpu.transfer(answer)
    if used not in MAY_TAKE.get(rung, (rung,)):
        raise Failed(f"{instance.folder.name}, {length} tokens: came by {used} {facts}, not by {rung}")
    if got != wanted and (gap := lead(judge, asked, wanted, got)) > ROUNDING:
        raise Failed(
            f"{instance.folder.name}, {length} tokens, {used} {facts}: {got}, not {wanted}; it leads by {gap}"
        )
    return {"rung": used, "equal": str(got == wanted), **facts}


def lead(judge: gpu.Spawned, asked: list[int], wanted: list[int], got: list[int]) -> float:
    """By how much one engine prefers its own token where the other one's first differs: log of the probabilities."""
    same = next(at for at, pair in enumerate(zip(wanted, got, strict=True)) if pair[0] != pair[1])
    more = {"logprobs": 10, "return_tokens_as_token_ids": True}
    _, answer = judge.tokens([*asked, *wanted[:same]], 1, **more)
    best = answer.json["choices"][0]["logprobs"]["top_logprobs"][0]
    ours, theirs = (best.get(f"token_id:{tokens[same]}", -math.inf) for tokens in (got, wanted))
    return abs(float(theirs) - float(ours))


def at_once(judge: gpu.Spawned, instance: gpu.Spawned) -> str:
    """48 prompts, 16 at a time. Raises Failed where only two engines answer otherwise than one prompt after another.

    Unless vLLM is told to be invariant of batches, one engine's rounding depends on what else it computes.
    """
    asked = [gpu.prompt(5000 + n, 200 + 97 * (n % 30)) for n in range(48)]
    wanted = [judge.tokens(one, COUNT)[0] for one in asked]
    if len({tuple(tokens) for tokens in wanted}) < len(wanted) - 2:
        raise Failed(f"the model says the same whatever is asked, which proves nothing: {wanted[:3]}")
    with ThreadPoolExecutor(16) as pool:
        alone = list(pool.map(lambda one: judge.tokens([*one], COUNT)[0], asked))
        answers = list(pool.map(lambda one: instance.tokens(one, COUNT), asked))
    of_one = sum(got != right for got, right in zip(alone, wanted, strict=True))
    ours = sum(got != right for (got, _), right in zip(answers, wanted, strict=True))
    if ours and not of_one:
        raise Failed(f"{instance.folder.name}: {ours} of 48 prompts, 16 at once, have other tokens")
    rungs = dict(Counter(gpu.transfer(answer)[0] for _, answer in answers))
    return f"of 48 prompts, 16 at once, by {rungs}, {ours} have other tokens; {of_one} with one engine"


def first_token_ms(instance: gpu.Spawned, seed: int, length: int) -> float:
    began = time.perf_counter()
    lines = instance.stream({"prompt": gpu.prompt(seed, length), "max_tokens": 2, "ignore_eos": True})
    next(lines)
    took = (time.perf_counter() - began) * 1e3
    for _ in lines:
        continue
    return took


def transfers(judge: gpu.Spawned, instance: gpu.Spawned, rung: str, clock: gpu.Clock) -> list[dict[str, Any]]:
    """Every length by itself, many at once, and the times. Raises Failed."""
    used = Counter[str]()
    equal: list[str] = []
    for length in LENGTHS:
        facts = compare(judge, instance, rung, 1000 + length, length)
        used[facts["rung"]] += 1
        equal.append(facts["equal"])
        clock.say(f"{rung}: {length} tokens are right: {facts}")
    many = at_once(judge, instance)
    clock.say(f"{rung}: {many}")
    rows: list[dict[str, Any]] = []
    for length in (130, 1500, 3900):
        ours, single, moved = [], [], []
        for n in range(6):
            single.append(first_token_ms(judge, 20_000 + 10 * length + n, length))
            ours.append(first_token_ms(instance, 20_000 + 10 * length + n, length))
            facts = compare(judge, instance, rung, 90_000 + 10 * length + n, length)
            used[facts["rung"]] += 1
            equal.append(facts["equal"])
            moved.append(float(facts["ms"]))
        rows.append(
            {
                "metric": f"two engines, rung {rung}: request to first token, {length} tokens",
                "ours": round(statistics.median(ours[1:]), 2),
                "peer": round(statistics.median(single[1:]), 2),
                "peer_name": "one engine",
                "unit": "ms",
                "better": "lower",
                "told": f"{facts['bytes']} bytes, the transfer by itself {statistics.median(moved[1:]):.2f} ms, by "
                f"{facts['rung']}; {many}",
            }
        )
        clock.say(str(rows[-1]))
    for row in rows:
        row["told"] += (
            f"; {equal.count('True')} of {len(equal)} asked one by one equal, the others within rounding"
        )
    if not used[rung]:
        raise Failed(f"nothing came by {rung}: {dict(used)}")
    return rows


def sleeps(
    judge: gpu.Spawned, prefill: gpu.Spawned, decode: gpu.Spawned, rung: str, clock: gpu.Clock
) -> list[dict[str, Any]]:
    """Decode sleeps and wakes, then prefill, twice. Raises Failed."""
    falling: list[float] = []
    waking: list[float] = []
    freed: list[int] = []
    came = Counter[str]()
    for turn in range(2, 4):
        for name, instance in (("decode", decode), ("prefill", prefill)):
            before = gpu.gpu_used_mib()
            began = time.perf_counter()
            answer = instance.control({"sleep": True})
            falling.append(time.perf_counter() - began)
            asleep = gpu.gpu_used_mib()
            if answer.get("state") != "asleep":
                raise Failed(f"{name} did not go to sleep: {answer}")
            freed.append(before - asleep)
            status = instance.ask(
                "/v1/completions", {"model": gpu.NAME, "prompt": [5], "max_tokens": 1}
            ).status
            if status != 503:
                raise Failed(f"{name} answers {status} while it sleeps")
            if name == "prefill":  # decode does without
                wanted, _ = judge.tokens(gpu.prompt(40_000 + turn, 300), COUNT)
                got, without = decode.tokens(gpu.prompt(40_000 + turn, 300), COUNT)
                if got != wanted and lead(judge, gpu.prompt(40_000 + turn, 300), wanted, got) > ROUNDING:
                    raise Failed(f"decode computes wrongly while prefill sleeps: {got}, not {wanted}")
                clock.say(f"while prefill sleeps decode computes itself: {gpu.transfer(without)}")
            began = time.perf_counter()
            answer = instance.control({"wake": True, "generation": turn})
            waking.append(time.perf_counter() - began)
            if (answer.get("state"), answer.get("generation")) != ("awake", turn):
                raise Failed(f"{name} did not wake: {answer}")
            rungs = Counter[str]()
            seeds = iter(range(50_000 + 1000 * turn + (500 if name == "prefill" else 0), 99_999))

            def comes(seeds: Any = seeds) -> bool:
                """The first may find no channel yet; it must be right all the same."""
                asked = gpu.prompt(next(seeds), 700)
                wanted, _ = judge.tokens(asked, COUNT)
                got, answer = decode.tokens(asked, COUNT)
                if got != wanted and lead(judge, asked, wanted, got) > ROUNDING:
                    raise Failed(f"after a wake: {got}, not {wanted}; {gpu.transfer(answer)}")
                return gpu.transfer(answer)[0] in MAY_TAKE.get(rung, (rung,))

            until(comes, f"a transfer by {rung} after {name} woke", 60)
            for length in LENGTHS:
                rungs[compare(judge, decode, rung, next(seeds), length)["rung"]] += 1
            came += rungs
            clock.say(
                f"{name} slept ({freed[-1]} MiB of the GPU freed) in {falling[-1]:.2f} s, woke in {waking[-1]:.2f} s "
                f"in generation {turn}, and {len(LENGTHS)} transfers after it are right: {dict(rungs)}"
            )
    told = f"{min(freed)} to {max(freed)} MiB of the GPU freed; every transfer after it right: {dict(came)}"
    names = (("sleep", falling), ("wake", waking))
    return [
        {
            "metric": f"{what} of an engine with KV channels",
            "ours": round(statistics.median(found), 3),
            "peer": None,
            "peer_name": "",
            "unit": "s",
            "better": "lower",
            "told": told,
        }
        for what, found in names
    ]


def run(folder: Path, args: argparse.Namespace, clock: gpu.Clock, keep: Keep) -> None:
    """`keep`: rows, as soon as they are known."""
    model = gpu.deep(folder / "model", LAYERS if torch.cuda.is_available() else 4)
    on_gpu = torch.cuda.is_available()
    options = ["--max-model-len", "4096", "--dtype", args.dtype]
    if on_gpu:
        options += [*gpu.ON_GPU, "--attention-backend", args.backend]
        options += ["--enable-sleep-mode"] if args.sleep else []
        options += ["--enforce-eager"] if args.eager else []
    env = {"VLLM_BATCH_INVARIANT": "1"} if args.invariant else {}
    made: list[gpu.Spawned] = []
    try:
        judge = gpu.spawn(folder, "one", model, *options, **env)
        made.append(judge)
        prefill = gpu.spawn(folder, "prefill", model, "--role", "prefill", *options, **env)
        made.append(prefill)
        until(lambda: prefill.port or prefill.process.poll() is not None, "prefill's port", gpu.START_S)
        decodes = {}
        for rung in args.rungs:
            decodes[rung] = gpu.decode(folder, f"decode-{rung}", model, prefill, rung, *options, **env)
            made.append(decodes[rung])
        for instance in made:
            instance.ready()
            clock.say(f"{instance.folder.name} is ready: {marks(instance)}")
        for rung, decode in decodes.items():
            until(lambda d=decode: up(d), f"{rung}: a channel: {decode.get('/galaxy/channels').json}", 60)
            if not args.only_sleep:
                keep(transfers(judge, decode, rung, clock))
        if on_gpu and args.sleep:
            rung = args.rungs[0]
            keep(sleeps(judge, prefill, decodes[rung], rung, clock))
    finally:
        gpu.stop_all(made)


def marks(instance: gpu.Spawned) -> str:
    events = instance.status()["events"]
    return ", ".join(f"{e['name']} {e['at'] - events[0]['at']:.1f}" for e in events)


def up(instance: gpu.Spawned) -> bool:
    return any(pair["state"] == "up" for pair in instance.get("/galaxy/channels").json["pairs"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kv_engines_gpu", description=__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--rungs", nargs="+", default=["ipc", "shm", "tcp"] if on_gpu else ["shm", "tcp"])
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--backend", default="FLASH_ATTN")
    parser.add_argument("--eager", action="store_true", help="nothing compiled, no CUDA graphs")
    parser.add_argument("--invariant", action="store_true", help="vLLM's rounding does not depend on batches")
    parser.add_argument("--sleep", action="store_true", help="engines that can sleep, and do")
    parser.add_argument("--only-sleep", action="store_true", help="no transfers before")
    parser.add_argument("--folder", type=Path, help="of the logs; kept")
    args = parser.parse_args()
    clock = gpu.Clock()

    def keep(rows: list[dict[str, Any]]) -> None:
        if on_gpu:
            told = conditions(args)
            record("kv_engines_gpu", [_row(row, told) for row in rows])

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(folder, args, clock, keep)
    if not on_gpu:
        print("kv_engines_gpu: no GPU here: a rehearsal, nothing is recorded")
    return 0


def conditions(args: argparse.Namespace) -> str:
    import vllm

    how = "eager" if args.eager else "compiled, CUDA graphs"
    how += ", batch-invariant" if args.invariant else ""
    how += ", sleep mode on" if args.sleep else ""
    versions = f"vLLM {vllm.__version__}, torch {torch.__version__}"
    model = f"tiny model with {LAYERS} layers, greedy tokens compared with one engine's"
    name = torch.cuda.get_device_name(0)
    return f"{name}, one GPU for all engines; {versions}, {args.backend}, {args.dtype}, {how}; {model}"


def _row(row: dict[str, Any], told: str) -> dict[str, Any]:
    return {**{k: v for k, v in row.items() if k != "told"}, "conditions": f"{told}; {row['told']}"}


if __name__ == "__main__":
    sys.exit(main())
