"""What an instance has behind its channels: transfers of the engine in this process, or the fronts of its ranks.

With one rank everything is here; ranks of tensor parallelism are processes, which get to know by vLLM's configuration
who they are.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from runtimes.transport.channel import Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.both import BothWays
from runtimes.vllm_pd.break_even import BreakEven
from runtimes.vllm_pd.keeper import Attach
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.ranks.decode_front import FrontLandings
from runtimes.vllm_pd.ranks.mixed import MixedDecode, MixedPrefill
from runtimes.vllm_pd.ranks.prefill_front import FrontPushes
from runtimes.vllm_pd.ranks.words import Settings
from runtimes.vllm_pd.status import StartRefused
from runtimes.vllm_pd.worker_side import Worker


class PrefillHalf(NamedTuple):
    pushes: MixedPrefill | FrontPushes
    attach: Attach
    open_on: Callable[[Channel], int]
    extra: dict[str, Any]  # kv_connector_extra_config

    @property
    def worker(self) -> MixedPrefill | FrontPushes:
        """What the scheduler's half of the connector finds."""
        return self.pushes


class DecodeHalf(NamedTuple):
    landings: MixedDecode | FrontLandings
    pushes: Pushes | None  # of what decode holds
    attach: Attach
    open_on: Callable[[Channel], int]
    extra: dict[str, Any]

    @property
    def worker(self) -> MixedDecode | FrontLandings:
        return self.landings


def prefill_half(args: Namespace, who: Identity, rungs: Sequence[Rung], key: bytes) -> PrefillHalf:
    settings = _settings(args, who, rungs)
    if args.tensor_parallel_size > 1:
        front = FrontPushes(args.tensor_parallel_size)
        return PrefillHalf(front, front.attach, front.open_on, settings.plain())
    memory, pushes, ways = _here(args)
    fetching = BreakEven(args.kv_fetch_threshold_tokens)
    worker = Worker(memory, ways.landings, pushes, fetching, by_layers=args.kv_sends_by == "layers")
    mixed = MixedPrefill(ways, worker, memory, settings, key)
    return PrefillHalf(mixed, mixed.attach, mixed.open_on, {})


def decode_half(args: Namespace, who: Identity, rungs: Sequence[Rung], key: bytes) -> DecodeHalf:
    settings = _settings(args, who, rungs)
    if args.tensor_parallel_size > 1:
        front = FrontLandings(args.tensor_parallel_size)
        return DecodeHalf(front, None, front.attach, front.open_on, settings.plain())
    memory, pushes, ways = _here(args)
    mixed = MixedDecode(ways, Worker(memory, ways.landings, pushes), memory, settings, key)
    return DecodeHalf(mixed, pushes, mixed.attach, mixed.open_on, {})


def _here(args: Namespace) -> tuple[KvMemory, Pushes, BothWays]:
    memory = KvMemory()
    pushes = Pushes(memory, lease_s=args.kv_lease_seconds)
    return memory, pushes, BothWays(Landings(memory, args.kv_transfer_seconds), pushes)


def _settings(args: Namespace, who: Identity, rungs: Sequence[Rung]) -> Settings:
    if args.pipeline_parallel_size > 1:
        raise StartRefused(
            "prefill and decode don't split a model into stages",
            "--pipeline-parallel-size",
            "use --tensor-parallel-size, or --role unified",
        )
    times = (args.kv_transfer_seconds, args.kv_lease_seconds)
    return Settings(args.role, who.name, who.generation, who.layout, tuple(rungs), args.kv_host, *times)
