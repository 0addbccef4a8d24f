"""Prefill on one GPU and decode on another (or the same), in two processes, without engines: the runtime's halves.

The caches are what an attention backend would register, and their bytes follow from a seed, so that decode's process
knows what has to arrive.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from runtimes.transport.channel import Rung
from runtimes.transport.cuda import mover
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome, Prompt
from runtimes.vllm_pd.pushing import Pushes

KEY = b"k" * 32
WAIT_S = 60.0


class Shape(NamedTuple):
    """Of one rank's cache, at 16 bits: `apart`: keys and values outside the blocks, as older backends have them."""

    layers: int
    heads: int
    blocks: int
    tokens: int = 16
    size: int = 128
    apart: bool = False

    @property
    def block_bytes(self) -> int:
        return self.layers * self.heads * self.tokens * self.size * 2 * 2


def tensors(shape: Shape, seed: int, gpu: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator(device=f"cuda:{gpu}").manual_seed(seed)
    last = (shape.heads, shape.tokens, shape.size)
    dims = (2, shape.blocks, *last) if shape.apart else (shape.blocks, *last[:2], 2 * shape.size)

    def new() -> torch.Tensor:
        made = torch.empty(dims, dtype=torch.int16, device=f"cuda:{gpu}")
        return made.random_(-(1 << 15), 1 << 15, generator=generator).view(torch.bfloat16)

    return {f"model.layers.{number}": new() for number in range(shape.layers)}


def prefill(shape: Shape, gpu: int, pipe: Any, rungs: Sequence[Rung]) -> None:
    """A process that has every prompt's blocks computed, those that its job's tokens name, and waits for the end."""
    memory = KvMemory()
    kept = tensors(shape, 1, gpu)
    memory.register(kept, shape.blocks)
    torch.cuda.synchronize()
    pushes = Pushes(memory, 60.0)

    def start(key: int, job: jobs.Prefill) -> None:
        pushes.computed(key, job.request_id, job.tokens, len(job.tokens), True)

    pushes.accept_jobs(start, lambda key: None)
    listener = Listener(KEY, lambda: Identity("p", 1, Layout()), pushes.attach, rungs)
    pipe.send(listener.addr)
    pipe.recv()
    pipe.send(pushes.open_transfers)
    os._exit(0)


class Pair:
    """Decode's side, and prefill's process. `rung`: the one that transfers take."""

    def __init__(
        self, shape: Shape, rung: Rung, gpus: tuple[int, int] = (0, 0), window: int = mover.WINDOW
    ) -> None:
        self.shape, self.rung, self.gpu = shape, rung, gpus[1]
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=prefill, args=(shape, gpus[0], theirs, ("ipc", "shm", "tcp")))
        self.process.start()
        theirs.close()
        torch.cuda.set_device(self.gpu)
        self.memory = KvMemory()
        self.cache = tensors(shape, 2, self.gpu)
        self.memory.register(self.cache, shape.blocks)
        torch.cuda.synchronize()
        self.landings = Landings(self.memory, 60.0)
        rungs: tuple[Rung, ...] = (rung,)
        self.channel: Channel = dial(
            self.pipe.recv(), KEY, Identity("d", 1, Layout()), rungs=rungs, window=window
        )
        self.landings.attach(self.channel)
        until(lambda: bool(self.channel.rungs) or bool(self.channel.passed))

    def begin(
        self, sources: Sequence[int], targets: Sequence[int]
    ) -> tuple[int, SimpleQueue[tuple[float, Outcome]]]:
        """Prefill computes what it is asked for at once; the transfer begins with the reservation."""
        ended: SimpleQueue[tuple[float, Outcome]] = SimpleQueue()
        number = self.landings.open(
            self.channel,
            Prompt(
                "request",
                list(sources),
                lambda outcome: ended.put((time.perf_counter(), outcome)),
                lambda job: None,
            ),
        )
        self.landings.reserve(number, f"engine-{number}", 0, targets, len(sources) * self.shape.tokens)
        return number, ended

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> tuple[float, Outcome]:
        """Seconds from the reservation to the end."""
        start = time.perf_counter()
        _, ended = self.begin(sources, targets)
        end, outcome = ended.get(timeout=WAIT_S)
        return end - start, outcome

    def differing(self, sources: Sequence[int], targets: Sequence[int]) -> int:
        """How many layers have other bytes in these blocks than prefill."""
        wanted = tensors(self.shape, 1, self.gpu)
        x, y = (torch.tensor(ids, device=f"cuda:{self.gpu}") for ids in (sources, targets))
        axis = 1 if self.shape.apart else 0
        return sum(
            not torch.equal(
                wanted[name].index_select(axis, x).view(torch.int16),
                mine.index_select(axis, y).view(torch.int16),
            )
            for name, mine in self.cache.items()
        )

    def close(self) -> int:
        """Transfers that were still open at prefill."""
        self.pipe.send("end")
        left = int(self.pipe.recv())
        self.channel.close()
        self.process.join(WAIT_S)
        return left

    def kill(self) -> None:
        self.process.kill()
        self.process.join(WAIT_S)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        if time.monotonic() > end:
            raise TimeoutError
        threading.Event().wait(0.005)
