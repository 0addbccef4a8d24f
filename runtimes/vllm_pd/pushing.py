"""The sender's half of transfers: jobs that come in, and finished blocks that go out as soon as both sides allow.

Called by four kinds of threads: channel readers bring jobs, the event loop runs them, the engine says which
blocks are whole, and one sender a channel writes. A transfer ends exactly once; until then the engine keeps its
blocks, but never longer than the lease: a decode that has died or hangs can't hold them. Blocks that a peer may claim
without a job of its own are offered under a name that both sides can tell: a source.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from kserve_ext.core.kv_plan import PushPlan
from kserve_ext.core.kv_transfer import Write
from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.keepalive import Wrap, plain
from runtimes.vllm_pd.kv_memory import KvMemory, KvPart

StartJob = Callable[[int, jobs.Prefill], None]

_REMEMBERED = 256


@dataclass(slots=True, eq=False)
class _Source:
    """Blocks that may be claimed, as far as they are computed; and who has claimed them."""

    blocks: Sequence[int] = ()
    whole: int = 0
    final: bool = False
    pushes: set[int] = field(default_factory=set)  # keys
    offered: bool = False


@dataclass(slots=True, eq=False)
class _Push:
    key: int
    number: int  # as decode calls it
    channel: Channel
    rung: Rung
    deadline: float
    plan: PushPlan
    memory: KvMemory | KvPart
    source: Hashable = None  # that it was claimed of; None: it has a job
    engine_request: str = ""
    sending: bool = False
    #: Bytes may be under way although nobody is sending: to be flushed before its blocks may change.
    unflushed: bool = False
    cancelled: bool = False  # decode waits for the word that nothing is under way
    bytes: int = 0
    first_at: float = 0.0  # its first write began
    final_at: float = 0.0  # its last block was computed
    ending: str | None = None  # "" = whole


@dataclass(slots=True, eq=False)
class _Peer:
    channel: Channel
    pushes: dict[int, _Push] = field(default_factory=dict)  # by decode's number
    gone: bool = False
    sends: bool = False  # its sender runs


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
        #: What was claimed of a source has ended: reason ("" = whole), bytes and seconds of writing.
        self.on_claim_end: Callable[[Hashable, str, int, float], None] = lambda *ended: None
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
        with self._work:
            self._peers[channel] = _Peer(channel)

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
                with contextlib.suppress(ValueError):  # a second reservation changes nothing
                    push.plan.reserved(job.skip, job.targets)
                self._work.notify_all()
        elif isinstance(job, jobs.Cancel):
            with self._work:
                push.cancelled = True
            self._end(push, f"cancelled: {job.reason}", tell=False)

    def lost(self, channel: object, error: ChannelError) -> None:
        assert isinstance(channel, Channel)
        with self._work:
            peer = self._peers.pop(channel, None)
            if peer is None:
                return
            peer.gone = True
            pushes = list(peer.pushes.values())
            self._work.notify_all()
        for push in pushes:
            self._end(push, f"channel-{error.reason}", tell=False)

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
            key = self._begin(peer, job.transfer, rung, self._memory).key
            self._asked[key] = channel, job.transfer
        start(key, job)

    def _begin(self, peer: _Peer, number: int, rung: Rung, memory: KvMemory | KvPart) -> _Push:
        """With the lock held."""
        deadline = self._clock() + self._lease_s
        plan = PushPlan(memory.layers)
        push = _Push(next(self._keys), number, peer.channel, rung, deadline, plan, memory)
        self._by_key[push.key] = peer.pushes[number] = push
        if not peer.sends:
            peer.sends = True
            name = f"kv-sender-{peer.channel.peer.name}"
            threading.Thread(target=self._send_all, args=(peer,), name=name, daemon=True).start()
        return push

    # --- sources

    def offer(self, source: Hashable, blocks: Sequence[int], whole: int, final: bool) -> None:
        """The first `whole` of its blocks are there, and stay until it is withdrawn."""
        with self._work:
            known = self._sources.setdefault(source, _Source())
            known.blocks, known.whole, known.final, known.offered = blocks, whole, final, True
            for key in known.pushes:
                self._feed(self._by_key[key], known)
            self._work.notify_all()

    def withdraw(self, source: Hashable, reason: str) -> None:
        """Its blocks are about to change: returns when nobody reads them any more. Later claims are refused."""
        with self._work:
            known = self._sources.pop(source, None)
            self._withdrawn[source] = reason
            while len(self._withdrawn) > _REMEMBERED:
                del self._withdrawn[next(iter(self._withdrawn))]
            pushes = [self._by_key[key] for key in known.pushes] if known is not None else []
        for push in pushes:
            self._end(push, reason)
            self._wait(push)

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
                push = self._begin(peer, job.transfer, rung, memory)
                push.source = source
                push.plan.reserved(job.skip, job.targets)
                known = self._sources.setdefault(source, _Source())
                known.pushes.add(push.key)
                self._feed(push, known)
                self._work.notify_all()
        if refusal:
            _say(channel, jobs.Failed(job.transfer, refusal))

    def _feed(self, push: _Push, source: _Source) -> None:
        """With the lock held."""
        if source.offered and push.ending is None:
            push.plan.computed(source.blocks, source.whole, source.final)
            if source.final:
                push.final_at = self._clock()

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

    def computed(self, key: int, engine_request: str, blocks: Sequence[int], whole: int, final: bool) -> None:
        """The first `whole` of the request's blocks are computed."""
        with self._work:
            self._kept.add(engine_request)
            push = self._by_key.get(key)
            if push is None or push.ending is not None:
                return
            push.engine_request = engine_request
            self._open_requests[engine_request] = key
            push.plan.computed(blocks, whole, final)
            if final:
                push.final_at = self._clock()
            self._work.notify_all()

    def preempted(self, key: int) -> None:
        """Its blocks are about to be overwritten: returns when nobody reads them any more."""
        push = self._by_key.get(key)
        self._end(push, "preempted")
        self._wait(push)

    def _wait(self, push: _Push | None) -> None:
        with self._work:
            while push is not None and (push.sending or push.unflushed) and not push.channel.lost:
                self._work.wait(0.1)

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

    # --- senders

    def _send_all(self, peer: _Peer) -> None:
        while True:
            with self._work:
                taken = self._next(peer)
                while taken is None and not peer.gone:
                    self._work.wait()
                    taken = self._next(peer)
                if taken is None:
                    return
                push, writes = taken
                push.sending = True
            error = self._write(push, writes)
            if error or push.ending is not None or push.plan.finished:
                error = self._flush(push) or error
            with self._work:
                push.sending = False
                self._work.notify_all()
                ending = push.ending
                whole = push.plan.finished
            if error or ending is not None:
                self._end(push, error or ending or "")
            elif whole:
                self._end(push, "short" if push.plan.short else "")

    def _next(self, peer: _Peer) -> tuple[_Push, list[Write]] | None:
        for number, push in list(peer.pushes.items()):
            size = push.memory.block_bytes or 1
            if push.ending is not None:
                if push.unflushed:
                    return push, []
                continue
            try:
                credit = max(1, peer.channel.free(push.rung) // size)
                limit = max(1, peer.channel.largest_write(push.rung) // size)
            except ChannelError:  # lost: whoever hears of it ends the transfer
                continue
            writes = push.plan.take(credit, limit)
            if writes or push.plan.finished:
                peer.pushes[number] = peer.pushes.pop(number)  # others get their turn
                return push, writes
        return None

    def _write(self, push: _Push, writes: list[Write]) -> str:
        try:
            for write in writes:
                if push.ending is not None:
                    return push.ending
                push.first_at = push.first_at or self._clock()
                push.unflushed = push.channel.direct(push.rung)
                blocks = [
                    push.memory.view(write.layer, write.source + number, 1) for number in range(write.blocks)
                ]
                together = 1 if isinstance(push.memory, KvPart) else len(blocks)  # they don't land as one
                for at in range(0, len(blocks), together):
                    place = push.number, write.layer, write.target + at
                    push.bytes += push.channel.write(*place, blocks[at : at + together], push.rung)
            if push.ending is None and push.plan.finished and not push.plan.short:
                push.channel.send(jobs.encode(jobs.Sent(push.number, self._overlap(push))))
                push.channel.finish(push.number, push.plan.blocks, push.rung)
        except ChannelError as error:
            return f"channel-{error.reason}"
        except ValueError as error:
            return str(error)
        return ""

    def _flush(self, push: _Push) -> str:
        """Until nothing of it is under way, or its channel is lost."""
        try:
            if push.unflushed:
                push.channel.flush(push.number, push.rung)
        except ChannelError as error:
            return f"channel-{error.reason}"
        finally:
            push.unflushed = False
        return ""

    def _overlap(self, push: _Push) -> float:
        """Of the time in which it was written, the share in which blocks were still to be computed."""
        took = self._clock() - push.first_at
        return min(1.0, max(0.0, push.final_at - push.first_at) / took) if push.first_at and took > 0 else 0.0

    def _end(self, push: _Push | None, reason: str, tell: bool = True) -> None:
        """The one way a transfer ends; deferred while its sender, or the device, is reading the blocks."""
        if push is None:
            return
        with self._work:
            if self._by_key.get(push.key) is not push:
                return
            if push.ending is None:
                push.ending = reason
            if push.channel.lost:
                push.unflushed = False
            if push.sending or push.unflushed:
                self._work.notify_all()
                return
            reason = push.ending
            del self._by_key[push.key]
            self._open_requests.pop(push.engine_request, None)
            peer = self._peers.get(push.channel)
            if peer is not None:
                peer.pushes.pop(push.number, None)
            self._leave_source(push)
            self._work.notify_all()
        seconds = self._clock() - push.first_at if push.first_at else 0.0
        self.on_end(push.channel, push.rung, reason, push.bytes, seconds)
        if push.source is not None:
            self.on_claim_end(push.source, reason, push.bytes, seconds)
        if reason:
            if push.source is None:
                self._cancel_job(push.key)
            if tell and not reason.startswith("cancelled"):
                _say(push.channel, jobs.Failed(push.number, reason))
        if push.cancelled:
            _say(push.channel, jobs.Stopped(push.number))

    def _leave_source(self, push: _Push) -> None:
        """With the lock held."""
        source = self._sources.get(push.source)
        if source is not None:
            source.pushes.discard(push.key)
            if not source.pushes and not source.offered:
                del self._sources[push.source]


def _say(channel: Channel, job: jobs.Job) -> None:
    """A channel that is lost tells its owner itself."""
    with contextlib.suppress(ChannelError):
        channel.send(jobs.encode(job))
