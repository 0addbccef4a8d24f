"""The sender's half of transfers: jobs that come in, and finished blocks that go out as soon as both sides allow.

Called by four kinds of threads: channel readers bring jobs, the event loop runs them, the engine says which
blocks are whole, and senders write (sending.py). A transfer ends exactly once; until then the engine keeps its
blocks, but never longer than the lease, which decode's engine renews as long as it steps: one that has died or hangs
can't hold them. Blocks that a peer may claim without a job of its own are offered under a name that both sides can
tell: a source.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.keepalive import Wrap, plain
from runtimes.vllm_pd.kv_memory import KvMemory, KvPart
from runtimes.vllm_pd.sending import Over, Sender

StartJob = Callable[[int, jobs.Prefill], None]

_REMEMBERED = 256
PATIENCE_S = 1.0


@dataclass(slots=True, eq=False)
class _Source:
    """Blocks that may be claimed, as far as they are computed; and who has claimed them."""

    blocks: Sequence[int] = ()
    whole: int = 0
    final: bool = False
    pushes: set[int] = field(default_factory=set)  # keys
    offered: bool = False
    gone: bool = False


@dataclass(slots=True, eq=False)
class _Push:
    key: int
    number: int  # as decode calls it
    channel: Channel
    rung: Rung
    opened: float
    deadline: float
    sender: Sender
    source: Hashable = None  # that it was claimed of; None: it has a job
    #: Blocks at the prompt's start that decode keeps for us; None: it has some, and hasn't said how many yet.
    held: int | None = 0
    engine_request: str = ""
    marked: int = 0  # of its blocks, how many it is known of which step computes them
    cancelled: bool = False  # decode waits for the word that nothing is under way
    ending: str | None = None  # why it ends as soon as nobody reads its blocks
    over: bool = False


@dataclass(slots=True, eq=False)
class _Peer:
    sender: Sender
    pushes: dict[int, _Push] = field(default_factory=dict)  # by decode's number


class Pushes:
    """All transfers out of this engine."""

    def __init__(self, memory: KvMemory, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._lease_s = lease_s
        self._clock = clock
        self._work = threading.Condition()
        self._keys = itertools.count(1)
        self._by_key: dict[int, _Push] = {}
        self._peers: dict[Channel, _Peer] = {}
        self._asked: dict[int, tuple[Channel, int]] = {}  # jobs that run: who asked, and decode's number
        self._kept: set[str] = set()  # requests whose blocks the engine keeps until `results` names them
        self._ended_requests: set[str] = set()  # of these, the ones that the engine has finished
        self._open_requests: dict[str, int] = {}  # engine request -> key, while the transfer is open
        self._sources: dict[Hashable, _Source] = {}
        self._withdrawn: dict[Hashable, str] = {}  # the last of them, and why
        #: Which source a peer means by a number.
        self.source_of: Callable[[Channel, int], Hashable] = lambda channel, number: (channel, number)
        #: What was claimed of a source has ended: its rung, reason ("" = whole), bytes and seconds of writing.
        self.on_claim_end: Callable[[Hashable, Rung, str, int, float], None] = lambda *ended: None
        self._start_job: StartJob | None = None
        #: A transfer has ended: its rung, reason ("" = whole), bytes and seconds of writing.
        self.on_end: Callable[[Channel, Rung, str, int, float], None] = lambda *ended: None
        self._cancel_job: Callable[[int], None] = lambda key: None

    # --- set-up

    def accept_jobs(self, start: StartJob, cancel: Callable[[int], None]) -> None:
        """From now on jobs are run by calling `start` (from a reader's thread)."""
        self._start_job, self._cancel_job = start, cancel

    def refuse_jobs(self) -> None:
        self._start_job = None

    def attach(self, channel: Channel, wrap: Wrap = plain) -> None:
        self.join(channel)
        channel.start(*wrap(self, None))
        self._memory.once(channel.use)

    def join(self, channel: Channel) -> None:
        """A channel that somebody else starts."""
        sender = Sender(channel, lambda over: self._over(peer, over), self._clock)
        peer = _Peer(sender)
        with self._work:
            self._peers[channel] = peer

    @property
    def open_transfers(self) -> int:
        return len(self._by_key)

    def open_on(self, channel: Channel) -> int:
        """How many transfers are open on it."""
        peer = self._peers.get(channel)
        return len(peer.pushes) if peer is not None else 0

    # --- channel readers

    def message(self, channel: object, body: bytes) -> None:
        assert isinstance(channel, Channel)
        self.take(channel, jobs.read(body))

    def take(self, channel: Channel, job: jobs.Job) -> None:
        if isinstance(job, jobs.Prefill):
            self._open(channel, job)
            return
        if isinstance(job, jobs.Claim):
            self._claim(channel, job)
            return
        if isinstance(job, jobs.Renew):
            self._renew(channel, job.transfers)
            return
        with self._work:
            peer = self._peers.get(channel)
            push = peer.pushes.get(job.transfer) if peer is not None else None
        if push is None:
            if isinstance(job, jobs.Cancel):  # it has ended: all of it was flushed
                _say(channel, jobs.Stopped(job.transfer))
            return
        if isinstance(job, jobs.Reserve):
            if (job.layers, job.block_bytes) != (self._memory.layers, self._memory.block_bytes):
                self._end(push, "incompatible")
                return
            with self._work:
                push.held = job.skip if push.held is None else push.held
            push.sender.reserved(push.number, job.skip, job.targets)
        elif isinstance(job, jobs.Cancel):
            with self._work:
                push.cancelled, over = True, push.over
            if over:  # meanwhile
                _say(channel, jobs.Stopped(job.transfer))
            self._end(push, f"cancelled: {job.reason}")

    def lost(self, channel: object, error: ChannelError) -> None:
        assert isinstance(channel, Channel)
        with self._work:
            peer = self._peers.pop(channel, None)
        if peer is not None:
            peer.sender.close(f"channel-{error.reason}")

    def _renew(self, channel: Channel, numbers: Sequence[int]) -> None:
        with self._work:
            peer = self._peers.get(channel)
            for number in numbers if peer is not None else ():
                if peer is not None and (push := peer.pushes.get(number)) is not None:
                    push.deadline = self._clock() + self._lease_s

    def _open(self, channel: Channel, job: jobs.Prefill) -> None:
        start = self._start_job
        if start is None:
            _say(channel, jobs.Failed(job.transfer, "not-serving"))
            return
        rungs = channel.rungs
        rung = next((rung for rung in rungs if job.rung in ("", rung)), None)
        if rung is None:
            _say(channel, jobs.Failed(job.transfer, "rung-unavailable"))
            return
        with self._work:
            peer = self._peers.get(channel)
            if peer is None:
                return
            push = self._begin(channel, peer, job.transfer, rung, self._memory)
            if isinstance(push, _Push):
                push.held = None if job.held else 0
                self._asked[push.key] = channel, job.transfer
        if isinstance(push, _Push):
            start(push.key, job)
        else:
            _say(channel, jobs.Failed(job.transfer, push))

    def _begin(
        self, channel: Channel, peer: _Peer, number: int, rung: Rung, memory: KvMemory | KvPart
    ) -> _Push | str:
        """With the lock held. Or why not."""
        try:
            peer.sender.open(number, rung, memory)
        except (ChannelError, ValueError) as error:
            return f"rung-unavailable: {error}"
        now = self._clock()
        push = _Push(next(self._keys), number, channel, rung, now, now + self._lease_s, peer.sender)
        self._by_key[push.key] = peer.pushes[number] = push
        return push

    # --- sources

    def offer(self, source: Hashable, blocks: Sequence[int], whole: int, final: bool) -> None:
        """The first `whole` of its blocks are there, and stay until it is withdrawn."""
        with self._work:
            known = self._sources.setdefault(source, _Source())
            self._memory.mark(blocks[known.whole : whole])
            known.blocks, known.whole, known.final, known.offered = blocks, whole, final, True
            for key in known.pushes:
                self._feed(self._by_key[key], known)

    def withdraw(self, source: Hashable, reason: str) -> bool:
        """Its blocks are to change: claims are refused from now on. False: somebody reads them still, ask again."""
        with self._work:
            known = self._sources.get(source)
            if known is not None:
                known.gone = True
            self._withdrawn.setdefault(source, reason)
            while len(self._withdrawn) > _REMEMBERED:
                del self._withdrawn[next(iter(self._withdrawn))]
            pushes = [self._by_key[key] for key in known.pushes] if known is not None else []
        for push in pushes:
            self._end(push, reason)
        with self._work:
            if known is not None and not known.pushes:
                self._sources.pop(source, None)
            return source not in self._sources

    def claimed(self, source: Hashable) -> bool:
        """Somebody has claimed it, and hasn't got it yet."""
        known = self._sources.get(source)
        return known is not None and bool(known.pushes)

    def _claim(self, channel: Channel, job: jobs.Claim) -> None:
        source = self.source_of(channel, job.source)
        rung = next((rung for rung in channel.rungs if rung == job.rung), None)
        refusal = "" if rung is not None else "rung-unavailable"
        memory: KvMemory | KvPart = self._memory
        try:
            if job.block_bytes != self._memory.block_bytes:
                memory = self._memory.part(job.offset, job.block_bytes)
        except ValueError:
            refusal = "incompatible"
        if job.layers != memory.layers:
            refusal = "incompatible"
        with self._work:
            peer = self._peers.get(channel)
            refusal = refusal or self._withdrawn.get(source, "")
            if peer is not None and rung is not None and not refusal:
                push = self._begin(channel, peer, job.transfer, rung, memory)
                if isinstance(push, _Push):
                    push.source = source
                    push.sender.reserved(push.number, job.skip, job.targets)
                    known = self._sources.setdefault(source, _Source())
                    known.pushes.add(push.key)
                    self._feed(push, known)
                else:
                    refusal = push
        if refusal:
            _say(channel, jobs.Failed(job.transfer, refusal))

    def _feed(self, push: _Push, source: _Source) -> None:
        """With the lock held."""
        if source.offered:
            push.sender.computed(push.number, source.blocks, source.whole, source.final)

    # --- event loop

    def job_ended(self, key: int, started: float, ended: float, error: str) -> None:
        """The engine has answered the job, or refused it; once per job. Its transfer may have ended before."""
        channel, number = self._asked.pop(key)
        if error:
            self._end(self._by_key.get(key), error)
            return
        with contextlib.suppress(ChannelError):
            channel.send(jobs.encode(jobs.Computed(number, started, ended)))

    def forget(self, key: int) -> None:
        """No times of this job will come."""
        self._asked.pop(key, None)

    # --- engine

    def held(self, key: int) -> int | None:
        """Blocks at the prompt's start that decode keeps for us. None: it is about to say, for PATIENCE_S at most."""
        push = self._by_key.get(key)
        if push is None or push.ending is not None:
            return 0
        if push.held is None and self._clock() - push.opened > PATIENCE_S:
            push.held = 0  # it has no room for the prompt now: nobody waits for that
        return push.held

    def origin(self, key: int) -> tuple[Channel, int] | None:
        """Whose job it is, and what that one calls it; None: it has ended."""
        push = self._by_key.get(key)
        return (push.channel, push.number) if push is not None and push.ending is None else None

    def computed(self, key: int, engine_request: str, blocks: Sequence[int], whole: int, final: bool) -> None:
        """The first `whole` of the request's blocks are computed."""
        with self._work:
            self._kept.add(engine_request)
            push = self._by_key.get(key)
            if push is None:
                return
            push.engine_request = engine_request
            self._open_requests[engine_request] = key
            if push.ending is not None:
                return  # what left within the step may be read still
            self._memory.mark(blocks[push.marked : whole])
            push.marked = whole
        push.sender.computed(push.number, blocks, whole, final)

    def ahead(self, key: int, blocks: Sequence[int], whole: int, turns: int) -> None:
        """A step is under way: in the first `turns` of the layers, the first `whole` blocks are computed.

        Behind the step, `computed` says the same of all layers, before the engine may free a block.
        """
        push = self._by_key.get(key)
        if push is not None and push.ending is None:
            push.sender.ahead(push.number, blocks, whole, turns)

    def overwritten(self, key: int, why: str) -> None:
        """Its blocks are about to be overwritten: returns when nobody reads them any more."""
        push = self._by_key.get(key)
        self._end(push, why)
        self._wait(push)

    def _wait(self, push: _Push | None) -> None:
        with self._work:
            while push is not None and not push.over:
                self._work.wait()

    def results(self, ended_requests: set[str]) -> set[str]:
        """Of the requests that the engine has finished (told once), those kept for us that it may free now."""
        now = self._clock()
        for push in [p for p in list(self._by_key.values()) if p.deadline < now]:
            self._end(push, "lease-expired")
        with self._work:
            self._ended_requests |= ended_requests & self._kept
            free = {name for name in self._ended_requests if name not in self._open_requests}
            self._ended_requests -= free
            self._kept -= free
        return free

    # --- the one way a transfer ends

    def _end(self, push: _Push | None, reason: str) -> None:
        """As soon as neither its sender nor the device reads its blocks; the first reason counts."""
        if push is not None:
            push.ending = push.ending or reason
            push.sender.cancel(push.number, reason)

    def _over(self, peer: _Peer, over: Over) -> None:
        """By whichever thread has ended it."""
        reason = over.reason
        with self._work:
            push = peer.pushes.pop(over.transfer)
            push.over = True
            del self._by_key[push.key]
            self._open_requests.pop(push.engine_request, None)
            self._leave_source(push)
            self._work.notify_all()
        self.on_end(push.channel, push.rung, reason, over.bytes, over.seconds)
        if push.source is not None:
            self.on_claim_end(push.source, push.rung, reason, over.bytes, over.seconds)
        if reason:
            if push.source is None:
                self._cancel_job(push.key)
            if not reason.startswith("cancelled"):
                _say(push.channel, jobs.Failed(push.number, reason))
        if push.cancelled:
            _say(push.channel, jobs.Stopped(push.number))

    def _leave_source(self, push: _Push) -> None:
        """With the lock held."""
        source = self._sources.get(push.source)
        if source is not None:
            source.pushes.discard(push.key)
            if not source.pushes and (source.gone or not source.offered):
                del self._sources[push.source]


def _say(channel: Channel, job: jobs.Job) -> None:
    """A channel that is lost tells its owner itself."""
    with contextlib.suppress(ChannelError):
        channel.send(jobs.encode(job))
