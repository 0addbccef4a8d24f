"""Two vLLM engines on a GPU: a prompt computed by one goes on at the other with the tokens of a single engine.

`python -m bench.kv_engines_gpu`: a prefill and a decode instance for each rung, one engine that does both as judge.
Greedy tokens of every prompt must be equal, and its KV must have come by the rung that was asked for. `ipc` is asked
twice: as a user asks (`ipc`), where shared memory may be taken, too; and by a decode instance with a /dev/shm of its
own (`ipc-alone`), which has nothing but CUDA IPC. A token's KV is as large as Llama-3-8B's. Then decode and
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
from bench.gpu_models import deep
from bench.record import record
from tests.engine.instances import until

LENGTHS = (5, 16, 17, 130, 700, 1500, 3900)
COUNT = 24  # tokens of an answer
#: At 16 bits a prompt's last token, computed by itself, is rounded otherwise than with the prompt: tokens whose
#: probabilities differ by less (logarithms) may change places.
ROUNDING = 0.15
#: Of a rung that is asked for, those that a transfer takes where they are quicker.
MAY_TAKE = {"ipc": ("ipc", "shm"), "ipc-alone": ("ipc",)}
LAYERS = 32  # of the tiny model made wide, so that 3,900 tokens are 512 MB
KV_BYTES = 6 << 30  # of each engine
TIMED = (130, 1500, 3900)
SAMPLES = 5  # of a length in a round, behind one that does not count
SHORT = 8  # tokens of an answer that is compared while times are taken


Keep = Callable[[list[dict[str, Any]]], None]


class Failed(Exception):
    """An engine answered wrongly."""


def compare(
    judge: gpu.Spawned, instance: gpu.Spawned, rung: str, seed: int, length: int, count: int = COUNT
) -> dict[str, str]:
    """What is told of the transfer. Raises Failed."""
    asked = gpu.prompt(seed, length)
    wanted, _ = judge.tokens(asked, count)
    got, answer = instance.tokens(asked, count)
    used, facts = gpu.transfer(answer)
    if used not in MAY_TAKE.get(rung, (rung,)):
        raise Failed(f"{instance.folder.name}, {length} tokens: came by {used} {facts}, not by {rung}")
    if got != wanted and (gap := lead(judge, asked, wanted, got)) > ROUNDING:
        raise Failed(
            f"{instance.folder.name}, {length} tokens, {used} {facts}: {got}, not {wanted}; it leads by {gap}"
        )
    return {"rung": used, "equal": str(got == wanted), **facts, "why": why(instance, answer)}


def why(instance: gpu.Spawned, answer: Any) -> str:
    """What the cost model expected of each rung that there is."""
    name = answer.headers.get("x-request-id", "")
    found = instance.get(f"/galaxy/requests/{name}") if name else None
    return str(found.json.get("prefill", {}).get("rung", "")) if found and found.status == 200 else ""


def lead(judge: gpu.Spawned, asked: list[int], wanted: list[int], got: list[int]) -> float:
    """By how much one engine prefers its own token where the other one's first differs: log of the probabilities."""
    same = next(at for at, pair in enumerate(zip(wanted, got, strict=True)) if pair[0] != pair[1])
    more = {"logprobs": 10, "return_tokens_as_token_ids": True}
    _, answer = judge.tokens([*asked, *wanted[:same]], 1, **more)
    best = answer.json["choices"][0]["logprobs"]["top_logprobs"][0]
    ours, theirs = (best.get(f"token_id:{tokens[same]}", -math.inf) for tokens in (got, wanted))
    return abs(float(theirs) - float(ours))


class Many:
    """48 prompts, 16 at a time. Unless vLLM is told to be invariant of batches, one engine's rounding depends on what
    else it computes: so it is asked both ways, once.
    """

    def __init__(self, judge: gpu.Spawned) -> None:
        self._asked = [gpu.prompt(5000 + n, 200 + 97 * (n % 30)) for n in range(48)]
        self._wanted = [judge.tokens(one, COUNT)[0] for one in self._asked]
        if len({tuple(tokens) for tokens in self._wanted}) < len(self._wanted) - 2:
            raise Failed(
                f"the model says the same whatever is asked, which proves nothing: {self._wanted[:3]}"
            )
        self._of_one = self._others(judge)[0]

    def compare(self, instance: gpu.Spawned) -> str:
        """Raises Failed where only two engines answer otherwise than one prompt after another."""
        ours, rungs = self._others(instance)
        if ours and not self._of_one:
            raise Failed(f"{instance.folder.name}: {ours} of 48 prompts, 16 at once, have other tokens")
        return (
            f"of 48 prompts, 16 at once, by {rungs}, {ours} have other tokens; {self._of_one} with one engine"
        )

    def _others(self, instance: gpu.Spawned) -> tuple[int, dict[str, int]]:
        """How many have other tokens than one by one; the rungs."""
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda one: instance.tokens(one, COUNT), self._asked))
        others = sum(got != right for (got, _), right in zip(answers, self._wanted, strict=True))
        return others, dict(Counter(gpu.transfer(answer)[0] for _, answer in answers))


def first_token_ms(instance: gpu.Spawned, seed: int, length: int) -> float:
    began = time.perf_counter()
    lines = instance.stream({"prompt": gpu.prompt(seed, length), "max_tokens": 2, "ignore_eos": True})
    next(lines)
    took = (time.perf_counter() - began) * 1e3
    for _ in lines:
        continue
    return took


class Taken:
    """What was seen of one rung, over all rounds."""

    def __init__(self, rung: str) -> None:
        self.rung = rung
        self.used = Counter[str]()
        self.equal: list[bool] = []
        self.many = ""
        self.times: dict[int, list[tuple[float, float, float]]] = {length: [] for length in TIMED}
        self.by: dict[int, Counter[str]] = {length: Counter() for length in TIMED}
        self.bytes: dict[int, str] = {}

    def saw(self, facts: dict[str, str]) -> None:
        self.used[facts["rung"]] += 1
        self.equal.append(facts["equal"] == "True")

    def rows(self) -> list[dict[str, Any]]:
        """Raises Failed."""
        rung = MAY_TAKE.get(self.rung, (self.rung,))[0]
        if not self.used[rung]:
            raise Failed(f"nothing came by {rung}: {dict(self.used)}")
        same = f"{sum(self.equal)} of {len(self.equal)} asked one by one equal, the others within rounding"
        made: list[dict[str, Any]] = []
        for length, times in self.times.items():
            ours, single, moved = (sorted(column) for column in zip(*times, strict=True))
            told = f"{self.bytes[length]} bytes, by {dict(self.by[length])}; median of {len(times)}"
            what = f"two engines, rung {self.rung}"
            both = {
                f"{what}: request to first token, {length} tokens": (ours, single),
                f"{what}: transfer by itself, {length} tokens": (moved, None),
            }
            for metric, (found, peer) in both.items():
                made.append(
                    {
                        "metric": metric,
                        "ours": round(statistics.median(found), 2),
                        "peer": round(statistics.median(peer), 2) if peer else None,
                        "peer_name": "one engine" if peer else "",
                        "unit": "ms",
                        "better": "lower",
                        "told": f"{told}, {found[0]:.2f} to {found[-1]:.2f} ms; {self.many}; {same}",
                    }
                )
        return made


def first(judge: gpu.Spawned, instance: gpu.Spawned, taken: Taken, many: Many, clock: gpu.Clock) -> None:
    """Every length by itself, and many at once. Raises Failed."""
    for length in LENGTHS:
        facts = compare(judge, instance, taken.rung, 1000 + length, length)
        taken.saw(facts)
        clock.say(f"{taken.rung}: {length} tokens are right: {facts}")
    taken.many = many.compare(instance)
    clock.say(f"{taken.rung}: {taken.many}")


def timed(judge: gpu.Spawned, instance: gpu.Spawned, taken: Taken, turn: int, clock: gpu.Clock) -> None:
    """Raises Failed."""
    for length in TIMED:
        for n in range(SAMPLES + 1):
            seed = 20_000 + 1_000_000 * turn + 10 * length + n
            single = first_token_ms(judge, seed, length)
            ours = first_token_ms(instance, seed, length)
            facts = compare(judge, instance, taken.rung, seed + 500_000, length, SHORT)
            taken.saw(facts)
            if n:
                taken.times[length].append((ours, single, float(facts["ms"])))
                taken.by[length][facts["rung"]] += 1
                taken.bytes[length] = facts["bytes"]
        clock.say(f"round {turn + 1}, {taken.rung}, {length} tokens: {facts}")


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
    on_gpu = torch.cuda.is_available()
    model = deep(folder / "model", LAYERS if on_gpu else 4, wide=True)
    options = ["--max-model-len", "4096", "--dtype", args.dtype]
    if on_gpu:
        options += [
            *gpu.ON_GPU,
            "--kv-cache-memory-bytes",
            str(KV_BYTES),
            "--attention-backend",
            args.backend,
        ]
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
            before = gpu.OWN_SHM if rung == "ipc-alone" else ()
            asked = rung.removesuffix("-alone")
            decodes[rung] = gpu.decode(
                folder, f"decode-{rung}", model, prefill, asked, *options, before=before, **env
            )
            made.append(decodes[rung])
        for instance in made:
            instance.ready()
            clock.say(f"{instance.folder.name} is ready: {marks(instance)}")
        for rung, decode in decodes.items():
            until(lambda d=decode: up(d), f"{rung}: a channel: {decode.get('/galaxy/channels').json}", 60)
        if not args.only_sleep:
            taken = {rung: Taken(rung) for rung in decodes}
            many = Many(judge)
            for rung, decode in decodes.items():
                first(judge, decode, taken[rung], many, clock)
            for turn in range(args.rounds):
                for rung, decode in decodes.items():
                    timed(judge, decode, taken[rung], turn, clock)
            for one in taken.values():
                keep(one.rows())
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
    parser.add_argument(
        "--rungs", nargs="+", default=["ipc", "ipc-alone", "shm", "tcp"] if on_gpu else ["shm", "tcp"]
    )
    parser.add_argument("--rounds", type=int, default=3, help="the rungs take turns")
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
    model = (
        f"tiny model with {LAYERS} layers and 128 KiB of KV a token, greedy tokens compared with one engine's"
    )
    name = torch.cuda.get_device_name(0)
    return f"{name}, one GPU for all engines; {versions}, {args.backend}, {args.dtype}, {how}; {model}"


def _row(row: dict[str, Any], told: str) -> dict[str, Any]:
    return {**{k: v for k, v in row.items() if k != "told"}, "conditions": f"{told}; {row['told']}"}


if __name__ == "__main__":
    sys.exit(main())
