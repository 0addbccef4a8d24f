"""An engine of one rank, in this process, whose peers may have several: to those it is a front with a rank.

Which of the two a transfer or a job belongs to is seen from its number. What a rank needs (a listener, threads) is
made when the first such peer has come. Towards engines of one rank nothing changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from runtimes.transport.channel import Rung
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.both import BothWays
from runtimes.vllm_pd.keepalive import Wrap, plain
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome, Prompt
from runtimes.vllm_pd.pushing import Pushes, StartJob
from runtimes.vllm_pd.ranks.decode_front import FrontLandings
from runtimes.vllm_pd.ranks.decode_rank import DecodeRank
from runtimes.vllm_pd.ranks.prefill_front import FrontPushes
from runtimes.vllm_pd.ranks.prefill_rank import PrefillRank
from runtimes.vllm_pd.ranks.words import Settings
from runtimes.vllm_pd.scheduler_side import Plan
from runtimes.vllm_pd.worker_side import Worker

#: Numbers from here on are those of the front.
_BASE = 1 << 31


class _Mixed:
    """The worker's half: of plans and results, each side has its own."""

    addr = ""

    def __init__(self, worker: Worker, memory: KvMemory) -> None:
        self._worker = worker
        self._memory = memory
        self._lock = threading.Lock()

    def held(self, push: int) -> int | None:
        return self._worker.held(push)

    def pays(self, tokens: int) -> bool:
        return self._worker.pays(tokens)

    def register(self, tensors: dict[str, Any], blocks: int) -> None:
        self._worker.register(tensors, blocks)

    def incoming(self, news: Any) -> None:
        return

    def news(self) -> None:
        return


class MixedDecode(_Mixed):
    """Has the face of Landings towards decode's front, and of Worker towards the connector."""

    def __init__(
        self, ways: BothWays, worker: Worker, memory: KvMemory, settings: Settings, key: bytes
    ) -> None:
        super().__init__(worker, memory)
        self._ways = ways
        self._front = FrontLandings(1, first=_BASE)
        self._make: Callable[[], DecodeRank] = lambda: DecodeRank(settings, 0, key, memory)
        self._rank: DecodeRank | None = None
        self._front.on_peer = lambda peer: self._own().prepare(peer)

    def attach(self, channel: Channel, wrap: Wrap = plain) -> None:
        if channel.peer.layout.tensor_parallel > 1:
            self._front.attach(channel, wrap)
        else:
            self._ways.attach_dialled(channel, wrap)

    def open_on(self, channel: Channel) -> int:
        return self._ways.open_on(channel) + self._front.open_on(channel)

    @property
    def open_transfers(self) -> int:
        return self._ways.landings.open_transfers + self._front.open_transfers

    def open(self, channel: Channel, prompt: Prompt) -> int:
        several = channel.peer.layout.tensor_parallel > 1
        side: FrontLandings | Landings = self._front if several else self._ways.landings
        return side.open(channel, prompt)

    def cancel(self, number: int, reason: str) -> None:
        side: FrontLandings | Landings = self._front if number >= _BASE else self._ways.landings
        side.cancel(number, reason)

    # --- the connector's halves

    def outgoing(self, plan: Plan) -> Plan:
        theirs = self._front.outgoing(
            plan._replace(
                reserve=tuple(r for r in plan.reserve if r.transfer >= _BASE),
                unused=tuple(t for t in plan.unused if t >= _BASE),
            )
        )
        ours = tuple(r for r in plan.reserve if r.transfer < _BASE)
        unused = tuple(t for t in plan.unused if t < _BASE)
        return theirs._replace(reserve=ours + theirs.reserve, unused=unused + theirs.unused)

    def before_forward(self, plan: Plan) -> None:
        self._worker.before_forward(plan)

    def after_forward(self, plan: Plan) -> None:
        self._worker.after_forward(plan._replace(reserve=tuple(r for r in plan.reserve if r.peer is None)))
        if self._rank is not None or plan.failed:
            theirs = tuple(r for r in plan.reserve if r.peer is not None)
            self._own().after_forward(plan._replace(reserve=theirs))

    def results(self, finished: set[str]) -> tuple[set[str], set[str], set[str]]:
        sent, received, failed = self._worker.results(finished)
        if self._rank is not None:
            _, more, bad = self._rank.results(finished)
            received, failed = received | more, failed | bad
            if (news := self._rank.news()) is not None:
                self._front.incoming(news)
        return sent, received, failed

    def _own(self) -> DecodeRank:
        with self._lock:
            self._rank = self._rank or self._make()
            return self._rank


class MixedPrefill(_Mixed):
    """Has the face of Pushes towards whoever runs jobs, and of Worker towards the connector."""

    def __init__(
        self, ways: BothWays, worker: Worker, memory: KvMemory, settings: Settings, key: bytes
    ) -> None:
        super().__init__(worker, memory)
        self._ways = ways
        self._pushes: Pushes = ways.pushes
        self._front = FrontPushes(1, first=_BASE)
        self._make: Callable[[], PrefillRank] = lambda: PrefillRank(settings, 0, key, memory)
        self._rank: PrefillRank | None = None

    def attach(self, channel: Channel, wrap: Wrap = plain) -> None:
        if channel.peer.layout.tensor_parallel > 1:
            with self._lock:
                if self._rank is None:
                    self._rank = self._make()
                    self._front.listening([self._rank.addr])
            self._front.attach(channel, wrap)
        else:
            self._ways.attach_accepted(channel, wrap)

    def open_on(self, channel: Channel) -> int:
        return self._ways.open_on(channel) + self._front.open_on(channel)

    @property
    def open_transfers(self) -> int:
        return self._pushes.open_transfers + self._front.open_transfers

    # --- whoever runs jobs

    @property
    def on_end(self) -> Callable[[Channel, Rung, str, int, float], None]:
        return self._pushes.on_end

    @on_end.setter
    def on_end(self, told: Callable[[Channel, Rung, str, int, float], None]) -> None:
        self._pushes.on_end = self._front.on_end = told

    @property
    def on_fetched(self) -> Callable[[int, Outcome], None]:
        return self._worker.on_fetched

    @on_fetched.setter
    def on_fetched(self, told: Callable[[int, Outcome], None]) -> None:
        self._worker.on_fetched = told

    def computed(self, tokens: int, seconds: float) -> None:
        self._worker.computed(tokens, seconds)

    def accept_jobs(self, start: StartJob, cancel: Callable[[int], None]) -> None:
        self._pushes.accept_jobs(start, cancel)
        self._front.accept_jobs(start, cancel)

    def refuse_jobs(self) -> None:
        self._pushes.refuse_jobs()
        self._front.refuse_jobs()

    def job_ended(self, key: int, started: float, ended: float, error: str) -> None:
        self._side(key).job_ended(key, started, ended, error)

    def forget(self, key: int) -> None:
        self._side(key).forget(key)

    def _side(self, key: int) -> Pushes | FrontPushes:
        return self._front if key >= _BASE else self._pushes

    # --- the connector's halves

    def outgoing(self, plan: Plan) -> Plan:
        return self._front.outgoing(plan)

    def before_forward(self, plan: Plan) -> None:
        ours, theirs = self._parted(plan)
        self._worker.before_forward(ours)
        if self._rank is not None:
            self._rank.before_forward(theirs)

    def layer_computed(self, name: str, plan: Plan) -> None:
        """Jobs of peers with several ranks are none of the worker's: their blocks leave behind the step."""
        self._worker.layer_computed(name, plan)

    def after_forward(self, plan: Plan) -> None:
        ours, theirs = self._parted(plan)
        self._worker.after_forward(ours)
        if self._rank is not None:
            self._rank.after_forward(theirs)

    def results(self, finished: set[str]) -> tuple[set[str], set[str], set[str]]:
        sent, received, failed = self._worker.results(finished)
        if self._rank is not None:
            sent = sent | self._rank.results(finished)[0]
            if (news := self._rank.news()) is not None:
                self._front.incoming(news)
        return sent, received, failed

    def _parted(self, plan: Plan) -> tuple[Plan, Plan]:
        ours = plan._replace(
            progress=tuple(p for p in plan.progress if p.push < _BASE),
            withdrawn=tuple(p for p in plan.withdrawn if p < _BASE),
        )
        theirs = plan._replace(
            progress=tuple(p for p in plan.progress if p.push >= _BASE),
            withdrawn=tuple(p for p in plan.withdrawn if p >= _BASE),
        )
        return ours, theirs
