"""Prefill's front of an engine whose ranks are processes: takes jobs, and hears from the ranks what became of blocks.

Has the face of Pushes (pushing.py) towards whoever runs jobs, and none of its blocks: only messages travel on its
channels. Called by channel readers, the event loop and the engine's thread.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.keepalive import Wrap, plain
from runtimes.vllm_pd.landing import Outcome
from runtimes.vllm_pd.pushing import StartJob
from runtimes.vllm_pd.ranks.words import Begin, News, Pushed
from runtimes.vllm_pd.scheduler_side import Plan


@dataclass(slots=True, eq=False)
class _Job:
    channel: Channel
    transfer: int
    running: bool = True  # by the engine
    begun: bool = False  # the ranks know of it
    ended: int = 0  # ranks at which its blocks are sent, or never will be
    reason: str = ""
    rung: Rung = "tcp"
    bytes: int = 0
    seconds: float = 0.0


class FrontPushes:
    """All jobs of this engine of `ranks` ranks, numbered from `first` on."""

    def __init__(self, ranks: int, first: int = 1) -> None:
        self._ranks = ranks
        self._lock = threading.Lock()
        self._keys = itertools.count(first)
        self._jobs: dict[int, _Job] = {}
        self._channels: set[Channel] = set()
        self._addrs: list[str] = []
        #: Of a fetch: there are none.
        self.on_fetched: Callable[[int, Outcome], None] = lambda push, outcome: None
        self._begin: list[Begin] = []  # what the ranks must be told
        self._end: list[int] = []
        self._start_job: StartJob | None = None
        self._cancel_job: Callable[[int], None] = lambda key: None
        self.on_end: Callable[[Channel, Rung, str, int, float], None] = lambda *ended: None

    # --- set-up

    def listening(self, addrs: Sequence[str]) -> None:
        """Where the ranks do, in their order: decode's are told to dial them."""
        with self._lock:
            self._addrs = list(addrs)
            channels = list(self._channels)
        for channel in channels:
            self._introduce(channel)

    def accept_jobs(self, start: StartJob, cancel: Callable[[int], None]) -> None:
        self._start_job, self._cancel_job = start, cancel

    def refuse_jobs(self) -> None:
        self._start_job = None

    def attach(self, channel: Channel, wrap: Wrap = plain) -> None:
        with self._lock:
            self._channels.add(channel)
        channel.start(*wrap(self, None))
        if self._addrs:
            self._introduce(channel)

    def _introduce(self, channel: Channel) -> None:
        _say(channel, jobs.Ranks(0, self._addrs))

    @property
    def open_transfers(self) -> int:
        return sum(job.ended < self._ranks for job in list(self._jobs.values()))

    def open_on(self, channel: Channel) -> int:
        return sum(job.channel is channel for job in list(self._jobs.values()))

    # --- channel readers

    def message(self, channel: object, body: bytes) -> None:
        assert isinstance(channel, Channel)
        job = jobs.read(body)
        if isinstance(job, jobs.Prefill):
            self._open(channel, job)
        elif isinstance(job, jobs.Cancel):
            for key in self._keys_of(channel, job.transfer):
                self._give_up(key, f"cancelled: {job.reason}")

    def lost(self, channel: object, error: ChannelError) -> None:
        assert isinstance(channel, Channel)
        with self._lock:
            self._channels.discard(channel)
        for key in self._keys_of(channel):
            self._give_up(key, f"channel-{error.reason}")

    def _open(self, channel: Channel, job: jobs.Prefill) -> None:
        start = self._start_job
        if start is None:
            _say(channel, jobs.Failed(job.transfer, "not-serving"))
            return
        peer = channel.peer
        with self._lock:
            key = next(self._keys)
            self._jobs[key] = _Job(channel, job.transfer)
            degree = peer.layout.tensor_parallel
            self._begin.append(Begin(key, peer.name, peer.generation, job.transfer, degree))
        start(key, job)

    def _keys_of(self, channel: Channel, transfer: int | None = None) -> list[int]:
        with self._lock:
            return [
                key
                for key, job in self._jobs.items()
                if job.channel is channel and transfer in (None, job.transfer)
            ]

    def _give_up(self, key: int, reason: str) -> None:
        """Nobody waits for it: neither the engine nor the ranks need go on."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None or job.reason:
                return
            job.reason = reason
            self._end.append(key)
        self._cancel_job(key)

    # --- event loop

    def job_ended(self, key: int, started: float, ended: float, error: str) -> None:
        """The engine has answered the job, or refused it."""
        with self._lock:
            job = self._jobs[key]
            if error and not job.reason:
                job.reason = error
                self._end.append(key)
        if error:
            if not error.startswith("cancelled"):
                _say(job.channel, jobs.Failed(job.transfer, error))
        else:
            _say(job.channel, jobs.Computed(job.transfer, started, ended))
        self.forget(key)

    def forget(self, key: int) -> None:
        """The engine doesn't run it (any more)."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None:
                job.running = False
                if not job.begun:  # no rank has heard of it
                    job.ended = self._ranks
        self._close(key)

    # --- engine

    def held(self, push: int) -> int | None:
        return 0  # ranks don't fetch

    def pays(self, tokens: int) -> bool:
        return False

    def computed(self, tokens: int, seconds: float) -> None:
        return

    def outgoing(self, plan: Plan) -> Plan:
        """What the ranks get to know with a step's plan: which jobs there are, and which have been given up."""
        with self._lock:
            begin, self._begin = self._begin, []
            end, self._end = self._end, []
            for each in begin:
                if each.push in self._jobs:
                    self._jobs[each.push].begun = True
        return plan._replace(begin=tuple(begin), ended=tuple(end))

    def incoming(self, news: News) -> None:
        for pushed in news.pushed:
            self._pushed(pushed)

    def _pushed(self, pushed: Pushed) -> None:
        with self._lock:
            job = self._jobs.get(pushed.push)
            if job is None:
                return
            job.ended += 1
            job.reason = job.reason or pushed.reason
            job.rung = pushed.rung or job.rung
            job.bytes += pushed.bytes
            job.seconds = max(job.seconds, pushed.seconds)
        self._close(pushed.push)

    def _close(self, key: int) -> None:
        with self._lock:
            job = self._jobs.get(key)
            if job is None or job.running or job.ended < self._ranks:
                return
            del self._jobs[key]
        self.on_end(job.channel, job.rung, job.reason, job.bytes, job.seconds)


def _say(channel: Channel, job: jobs.Job) -> None:
    """A channel that is lost tells its owner itself."""
    with contextlib.suppress(ChannelError):
        channel.send(jobs.encode(job))
