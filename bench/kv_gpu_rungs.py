"""KV of Llama-3's shapes from GPU to GPU over each rung, 128 to 32,768 tokens (`python -m bench.kv_gpu_rungs`).

Two processes of one host, each with a GPU of its own where there are two, and in each the runtime's half of transfers
on a channel: planner, pieces, checksums, completion. Bytes are real and compared behind each length, there is no
model. Blocks of 16 tokens at 16 bits, scattered at random. A time is from the reservation of the blocks at decode to
the word that they are whole; everything was computed before. The peer is one plain copy of as many bytes in pieces of
16 MiB: from GPU to GPU (ipc), or down to page-locked memory and up again at the same time (shm and tcp).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from typing import Any, Final

import torch

from bench.kv_gpu import limits
from bench.record import record
from runtimes.transport.channel import Rung
from tests.support.gpu_pair import Pair, Shape

LENGTHS: Final = (128, 512, 2048, 8192, 32_768)
BLOCKS: Final = 2304
SHAPES: Final = {
    "Llama-3-8B": Shape(layers=32, heads=8, blocks=BLOCKS),
    "Llama-3-70B": Shape(layers=80, heads=8, blocks=BLOCKS),
    "Llama-3-70B, one of four ranks": Shape(layers=80, heads=2, blocks=BLOCKS),
}
RUNGS: Final[tuple[Rung, ...]] = ("ipc", "shm", "tcp")
PLAIN: Final = {"ipc": "peer", "shm": "staged", "tcp": "staged"}


def measure(name: str, rung: Rung, args: argparse.Namespace, plain: float) -> list[dict[str, Any]]:
    gpus = (0, torch.cuda.device_count() - 1)
    shape = SHAPES[name]
    pair = Pair(shape, rung, gpus)
    if not pair.channel.rungs:
        print(f"{name}, {rung}: can't be had: {'; '.join(pair.channel.passed)}")
        pair.kill()
        return []
    rows = []
    for tokens in args.lengths:
        count = tokens // shape.tokens
        size = count * shape.block_bytes
        times = []
        for round_ in range(args.rounds + 1):
            chosen = random.Random(round_ + tokens)
            sources, targets = chosen.sample(range(BLOCKS), count), chosen.sample(range(BLOCKS), count)
            seconds, outcome = pair.move(sources, targets)
            if outcome.reason:
                raise AssertionError(f"{name}, {rung}, {tokens} tokens: {outcome.reason}")
            times.append(seconds * 1e3)
            if rung == "tcp" and size > 4e9 and round_ == 1:
                break
        differ = pair.differing(sources, targets)
        if differ:
            raise AssertionError(f"{name}, {rung}, {tokens} tokens: bytes of {differ} layers differ")
        ours = statistics.median(times[1:])  # the first one warms up
        print(
            name,
            rung,
            tokens,
            [round(each, 2) for each in times],
            f"{size / ours / 1e6:.1f} GB/s",
            flush=True,
        )
        rows.append(
            {
                "metric": f"{name}: KV of {tokens} tokens, rung {rung}",
                "ours": round(ours, 3),
                "peer": round(size / plain / 1e6, 3),
                "peer_name": "plain copy",
                "unit": "ms",
                "better": "lower",
                "conditions": f"{torch.cuda.get_device_name(0)}, {'two GPUs' if gpus[1] else 'one GPU for both'}; "
                f"{size} bytes in {count} scattered blocks of {shape.block_bytes}, two processes, "
                f"{len(times) - 1} rounds, medians; checksums on; plain copy {plain:.1f} GB/s",
            }
        )
    pair.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kv_gpu_rungs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=RUNGS)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=tuple(SHAPES))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench-kv-gpu-rungs needs a GPU with CUDA: none is visible to torch", file=sys.stderr)
        return 2
    found = limits((0, torch.cuda.device_count() - 1), 3)
    print({name: round(value, 1) for name, value in found.items()}, flush=True)
    rows = []
    for name in args.shapes:
        for rung in args.rungs:
            plain = found.get(PLAIN[rung], found["staged"])
            rows += measure(name, rung, args, plain)
    record("kv_gpu_rungs", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
