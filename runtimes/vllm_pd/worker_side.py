"""The worker's half of the KV connector: carries out the scheduler's Plan on this process's transfers.

The engine runs in this process, so the worker finds the transfers that the instance's front opened in `CURRENT`;
an engine whose workers are processes of their own has others (ranks/). Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from runtimes.transport.channel import ChannelError
from runtimes.vllm_pd.break_even import BreakEven
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.scheduler_side import Fetch, Plan, Reservation


class Worker:
    """`landings` receive and `pushes` send: decode and prefill do both, for what the other one holds already.

    `by_layers`: what a step computes is sent layer by layer, while it computes; else behind it.
    """

    def __init__(
        self,
        memory: KvMemory,
        landings: Landings,
        pushes: Pushes,
        fetching: BreakEven | None = None,
        *,
        by_layers: bool = True,
    ) -> None:
        self._memory = memory
        self._landings = landings
        self._pushes = pushes
        self._fetching = fetching or BreakEven()
        self._by_layers = by_layers
        self._turns = 0  # layers that this step has computed
        self._fetches: dict[str, int] = {}  # requests -> the transfer that fetches what decode holds of them
        self._offers: dict[str, Hashable] = {}  # requests -> what is offered of their blocks
        self._results: dict[str, bool] = {}  # requests whose transfer has ended, and whether it is whole
        #: A fetch has ended, of this push.
        self.on_fetched: Callable[[int, Outcome], None] = lambda push, outcome: None

    # --- the scheduler's half, which is in this process

    def outgoing(self, plan: Plan) -> Plan:
        return plan

    def incoming(self, news: Any) -> None:
        return

    def held(self, push: int) -> int | None:
        return self._pushes.held(push)

    def pays(self, tokens: int) -> bool:
        return tokens >= self._fetching.needed(tokens)

    def computed(self, tokens: int, seconds: float) -> None:
        """So many took so long here, none of them fetched."""
        self._fetching.took(False, tokens, seconds)

    # --- the engine's steps

    addr = ""  # where a rank listens that is a process

    def register(self, tensors: dict[str, Any], blocks: int) -> None:
        self._memory.register(tensors, blocks)

    def before_forward(self, plan: Plan) -> None:
        """Blocks may be overwritten by this step: nobody may be sending them."""
        self._turns = 0
        for push in plan.withdrawn:
            self._pushes.overwritten(push, plan.why)

    def layer_computed(self, name: str, plan: Plan) -> None:
        """Behind each layer of a step. One that comes out of turn says nothing: the end of the step does."""
        if not self._by_layers or not plan.progress or self._memory.turn(name) != self._turns:
            return
        self._turns += 1
        if self._turns < self._memory.layers:
            for p in plan.progress:
                self._pushes.ahead(p.push, p.blocks, p.whole, self._turns)

    def after_forward(self, plan: Plan) -> None:
        for transfer in plan.unused:
            self._landings.cancel(transfer, "not needed")
        for request in plan.dropped:
            self._landings.cancel(self._fetches.get(request, 0), "not needed")
        for reservation in plan.reserve:
            self._reserve(reservation)
        for fetch in plan.fetch:
            self._fetch(fetch)
        for p in plan.progress:
            self._pushes.computed(p.push, p.request, p.blocks, p.whole, p.final)

    def results(self, finished: set[str]) -> tuple[set[str], set[str], set[str]]:
        """Requests sent, received (or failed), and of these the failed ones."""
        sent = self._pushes.results(finished)
        received, failed = self._landings.results()
        self._results |= {name: name not in failed for name in received}
        told = {name: whole for name, whole in self._results.items() if self._free(name)}
        for name in told:
            del self._results[name]
            self._fetches.pop(name, None)
        return sent, set(told), {name for name, whole in told.items() if not whole}

    def news(self) -> None:
        """For the front, which is in this process: it hears of everything at once."""
        return

    def _reserve(self, r: Reservation) -> None:
        channel = self._landings.channel(r.transfer) if r.held else None
        self._landings.reserve(r.transfer, r.request, len(r.held), r.targets, r.tokens)
        if channel is not None:
            self._offers[r.request] = channel, r.transfer
            self._pushes.offer((channel, r.transfer), r.held, len(r.held), True)

    def _free(self, request: str) -> bool:
        """Nobody reads what was offered of its blocks: from now on they may change."""
        source = self._offers.get(request)
        if source is not None and not self._pushes.withdraw(source, "not needed"):
            return False
        self._offers.pop(request, None)
        return True

    def _fetch(self, f: Fetch) -> None:
        origin = self._pushes.origin(f.push)

        def closed(outcome: Outcome) -> None:
            if not outcome.reason:
                self._fetching.took(True, f.tokens, outcome.ms / 1000)
            self.on_fetched(f.push, outcome)

        try:
            if origin is None:
                raise ChannelError("closed", "the job has ended")
            channel, number = origin
            self._fetches[f.request] = self._landings.claim(
                channel, number, f.request, f.skip, f.targets, f.tokens, closed, back=True
            )
        except ChannelError as error:
            self._results[f.request] = False
            self.on_fetched(f.push, Outcome(error.reason, "none", 0, 0, 0, 0.0))


#: Set by the instance before its engine is built: a Worker, or the front's half of ranks that are processes. Such a
#: process finds none, and makes its own.
CURRENT: list[Any] = []
