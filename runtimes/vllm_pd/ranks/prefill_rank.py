"""One tensor-parallel rank of prefill, in its process: offers the blocks of its heads to the ranks of decode.

A job is done here when all ranks of decode that need this one's heads have claimed its blocks and have them, or when
it is given up; until then the engine keeps them, but no longer than the lease if nobody comes. Called by the worker's
thread and by readers of channels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from kserve_ext.core.kv_ranks import parts
from runtimes.transport.channel import Rung
from runtimes.transport.listener import Listener
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.ranks.words import Begin, News, Pushed, Settings, instance_of
from runtimes.vllm_pd.scheduler_side import Plan

_LOOK_S = 0.001


@dataclass(slots=True, eq=False)
class _Job:
    push: int
    source: Hashable
    expected: int  # ranks of decode that claim blocks here
    deadline: float
    ended: int = 0  # claims
    request: str = ""  # "": the engine has computed nothing of it
    finished: bool = False  # by the engine
    reason: str = ""
    rung: Rung | None = None
    bytes: int = 0
    seconds: float = 0.0


class PrefillRank:
    def __init__(
        self,
        settings: Settings,
        rank: int,
        key: bytes,
        memory: KvMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._degree = settings.layout.tensor_parallel
        self._heads = settings.layout.kv_heads or 1
        self._rank = rank
        self._lease_s = settings.lease_s
        self._clock = clock
        self._memory = memory or KvMemory()
        self._pushes = Pushes(self._memory, settings.lease_s, clock)
        self._pushes.source_of = _source
        self._pushes.on_claim_end = self._claim_ended
        self._lock = threading.Lock()
        self._jobs: dict[int, _Job] = {}
        self._by_source: dict[Hashable, _Job] = {}
        self._unwanted: set[str] = set()  # requests that the engine computes although their job has ended
        self._news: list[Pushed] = []
        self._channels: list[Channel] = []
        who = settings.identity(rank)
        self._listener = Listener(key, lambda: who, self._accepted, settings.rungs, settings.host)

    @property
    def addr(self) -> str:
        return self._listener.addr

    # --- the engine's steps

    def register(self, tensors: dict[str, Any], blocks: int) -> None:
        self._memory.register(tensors, blocks)

    def before_forward(self, plan: Plan) -> None:
        """Blocks may be overwritten by this step: nobody may be sending them."""
        for push in plan.withdrawn:
            job = self._jobs.get(push)
            if job is not None:
                job.reason = job.reason or plan.why
                while not self._pushes.withdraw(job.source, plan.why):
                    time.sleep(_LOOK_S)

    def layer_computed(self, name: str, plan: Plan) -> None:
        """Blocks of ranks leave behind the step: who claims them is known by then."""
        return

    def after_forward(self, plan: Plan) -> None:
        for begin in plan.begin:
            self._begin(begin)
        for push in plan.ended:
            job = self._jobs.get(push)
            if job is not None:
                job.reason = job.reason or "cancelled"
        for p in plan.progress:
            job = self._jobs.get(p.push)
            if job is None:
                self._unwanted.add(p.request)
                continue
            job.request = p.request
            if not job.reason:
                self._pushes.offer(job.source, p.blocks, p.whole, p.final)

    def results(self, finished: set[str]) -> tuple[set[str], set[str], set[str]]:
        """Requests whose blocks the engine may free, and none received."""
        self._pushes.results(set())  # leases of claims that nobody renews end
        sent = self._unwanted & finished
        self._unwanted -= sent
        for job in list(self._jobs.values()):
            job.finished |= job.request in finished
            if self._clock() >= job.deadline and not self._pushes.claimed(job.source):
                job.reason = job.reason or "lease-expired"
            over = bool(job.reason) or job.ended >= job.expected
            if over and self._free(job) and job.request:
                sent.add(job.request)
        return sent, set(), set()

    def news(self) -> News | None:
        with self._lock:
            pushed, self._news = self._news, []
        return News(pushed=tuple(pushed)) if pushed else None

    def close(self) -> None:
        self._listener.close()
        for channel in self._channels:
            channel.close()

    # --- a job

    def _begin(self, begin: Begin) -> None:
        every = parts(self._heads, self._degree, begin.ranks)
        expected = sum(part.source == self._rank for part in every)
        source = (begin.opener, begin.generation, begin.transfer)
        job = _Job(begin.push, source, expected, self._clock() + self._lease_s)
        with self._lock:
            self._jobs[begin.push] = self._by_source[source] = job

    def _claim_ended(self, source: Hashable, rung: Rung, reason: str, size: int, seconds: float) -> None:
        with self._lock:
            job = self._by_source.get(source)
            if job is not None:
                job.ended += 1
                job.rung = rung
                job.bytes += size
                job.seconds = max(job.seconds, seconds)
                if reason and not job.reason:
                    job.reason = reason

    def _free(self, job: _Job) -> bool:
        """Nobody reads its blocks any more. The engine hears of it when it has finished the request, too."""
        if not self._pushes.withdraw(job.source, job.reason or "done"):
            return False
        if job.request and not job.finished:
            return False
        with self._lock:
            del self._jobs[job.push]
            del self._by_source[job.source]
            self._news.append(Pushed(job.push, job.rung, job.reason, job.bytes, job.seconds))
        return True

    def _accepted(self, channel: Channel) -> None:
        self._channels = [known for known in self._channels if known.lost is None]
        self._channels.append(channel)
        self._pushes.attach(channel)


def _source(channel: Channel, number: int) -> Hashable:
    """A rank may claim what the front of its own instance has asked for, in its own generation."""
    return (instance_of(channel.peer.name), channel.peer.generation, number)
