"""The class that vLLM loads: its KV connector interface, version 1, on our two halves.

Matches vLLM 0.32's distributed/kv_transfer/kv_connector/v1/base.py. Decode: blocks are reserved in
update_state_after_alloc and awaited (an asynchronous load). Prefill: blocks are pushed after each step, or layer by
layer within it, and kept after the request until they are sent; what decode holds of a prompt is awaited likewise.
Failed loads are recomputed (kv_load_failure_policy=recompute).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
)
from vllm.platforms import current_platform

from runtimes.vllm_pd import worker_side
from runtimes.vllm_pd.ranks.process import make_rank
from runtimes.vllm_pd.ranks.words import News
from runtimes.vllm_pd.scheduler_side import DecodeSide, Plan, PrefillSide


@dataclass
class PlanMetadata(KVConnectorMetadata):  # type: ignore[misc]
    plan: Plan = field(default_factory=Plan)


@dataclass
class RankNews(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What ranks that are processes tell their front with a step."""

    news: tuple[News, ...]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        return RankNews((*self.news, *other.news))


@dataclass
class RankAddr(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """Where a rank of prefill listens."""

    addr: str


class GalaxyConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """One object per half, as vLLM wants it."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        size = vllm_config.cache_config.block_size
        worker = role == KVConnectorRole.WORKER
        here = worker_side.CURRENT[0] if worker_side.CURRENT else self._rank()
        self._prefill = self._kv_transfer_config.is_kv_producer
        self._side: DecodeSide | PrefillSide = PrefillSide(size, here) if self._prefill else DecodeSide(size)
        self._here = here
        self._worker = here if worker else None
        self._size = size
        self._caches: dict[str, Any] = {}

    def begin_anew(self) -> None:
        """Another instance has taken the engine, or its memory has moved: everything of before is void.

        Its halves are those of `CURRENT` from now on, which are told where the KV cache lies. No request is open.
        """
        here = self._here = worker_side.CURRENT[0]
        self._side = PrefillSide(self._size, here) if self._prefill else DecodeSide(self._size)
        if self._worker is not None:
            self._worker = here
            self.register_kv_caches(self._caches)

    def _rank(self) -> Any:
        """In a process of its own."""
        from vllm.distributed.parallel_state import get_tp_group

        return make_rank(self._kv_transfer_config.kv_connector_extra_config, get_tp_group().rank_in_group)

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """On a GPU the layers of a block behind each other, where the attention backend can: few large writes.

        vLLM drops the wish, with a warning, where it can't; the CPU's attention never can.
        """
        return None if current_platform.is_cpu() else "BLHNC"

    # --- scheduler

    def on_new_request(self, request: Any) -> None:
        self._side.arrived(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        tokens = self._side.matched(request, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._side.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return PlanMetadata(self._here.outgoing(self._side.step(scheduler_output)))

    def update_connector_output(self, connector_output: Any) -> None:
        if connector_output.kv_connector_worker_meta is not None:
            for news in connector_output.kv_connector_worker_meta.news:
                self._here.incoming(news)

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        if metadata:
            self._here.listening([metadata[rank].addr for rank in sorted(metadata)])

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self._side.finished(request), None

    # --- worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._caches = kv_caches
        self._halves().register(kv_caches, self._kv_cache_config.num_blocks)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        self._halves().before_forward(kv_connector_metadata.plan)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        return

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        if self._prefill:
            self._halves().layer_computed(layer_name, self._get_connector_metadata().plan)

    def wait_for_save(self) -> None:
        plan = self._get_connector_metadata().plan
        if sys.exception() is None:
            self._halves().after_forward(plan)
        else:  # vLLM calls this in a `finally`
            self._halves().before_forward(plan.failed_step())

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        sent, received, failed = self._halves().results(finished_req_ids)
        return KVConnectorTransferResults(
            finished_sending=sent, finished_recving=received, failed_recving=failed
        )

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        news = self._halves().news()
        return RankNews((news,)) if news is not None else None

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        addr = self._halves().addr
        return RankAddr(addr) if addr else None

    def shutdown(self) -> None:
        if self._worker is not None and not worker_side.CURRENT:  # else the instance closes what it has made
            self._worker.close()

    def _halves(self) -> Any:
        assert self._worker is not None, "a worker's call on the scheduler's half"
        return self._worker


def settle(core: Any, most_steps: int = 100) -> None:
    """On the engine's thread: steps until nothing is left of requests that have ended.

    The worker's half hears of their end with a step and says with one that their blocks are free; on a GPU a step may
    still run behind the last answer.
    """
    steps = 0
    while (core.scheduler.has_requests() or core.batch_queue) and steps < most_steps:
        core.step_fn()
        steps += 1


def join_instance(core: Any) -> None:
    """On the engine's thread: its connector's halves find those of the instance that begins, or begins again."""
    if core.scheduler.connector is None:
        return
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    core.scheduler.connector.begin_anew()
    core.collective_rpc(lambda worker: get_kv_transfer_group().begin_anew())
