"""The worker's half of the KV connector: carries out the scheduler's Plan on this process's transfers.

The engine runs in this process, so the worker finds the transfers that the instance's front opened in `CURRENT`;
an engine whose workers are processes of their own would set it there. Decides nothing.
"""

from __future__ import annotations

from typing import Any

from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.scheduler_side import Plan


class Worker:
    """One of `landings` (decode) and `pushes` (prefill)."""

    def __init__(
        self, memory: KvMemory, landings: Landings | None = None, pushes: Pushes | None = None
    ) -> None:
        self._memory = memory
        self._landings = landings
        self._pushes = pushes

    # --- asked by the scheduler's half

    def held(self, push: int) -> int | None:
        return 0

    def pays(self, tokens: int) -> bool:
        return False

    # --- the engine's steps

    def register(self, tensors: dict[str, Any], blocks: int) -> None:
        self._memory.register(tensors, blocks)

    def before_forward(self, plan: Plan) -> None:
        """Blocks may be overwritten by this step: nobody may be sending them."""
        if self._pushes is not None:
            for push in plan.preempted:
                self._pushes.preempted(push)

    def after_forward(self, plan: Plan) -> None:
        if self._landings is not None:
            for transfer in plan.unused:
                self._landings.cancel(transfer, "not needed")
            for r in plan.reserve:
                self._landings.reserve(r.transfer, r.request, len(r.held), r.targets, r.tokens)
        if self._pushes is not None:
            for p in plan.progress:
                self._pushes.computed(p.push, p.request, p.blocks, p.whole, p.final)

    def results(self, finished: set[str]) -> tuple[set[str], set[str], set[str]]:
        """Requests sent, received (or failed), and of these the failed ones."""
        sent = self._pushes.results(finished) if self._pushes is not None else set()
        if self._landings is None:
            return sent, set(), set()
        received, failed = self._landings.results()
        return sent, received, failed


#: Set by the instance before its engine is built.
CURRENT: list[Worker] = []
