"""The receiver's half of transfers: reserved blocks, what has landed in them, and when to give up.

A transfer is opened by asking for a prompt to be computed (decode), or by claiming blocks that the peer has or gets
anyway: those of a transfer that was opened elsewhere, or those that decode holds of a prompt (prefill).

Called by three kinds of threads: the event loop opens a transfer, the engine reserves blocks and collects
results, channel readers write. A transfer ends exactly once: whole (every block of every layer, checksums
right, and the sender says that it is done) or failed with a reason; a failed one is recomputed, never used.
Its blocks are reported to the engine only when nobody can be writing to them any more: no reader here, and on a rung
on which the peer itself writes into them, the peer has said so, or its channel is lost. Whether a peer still lives is
not asked here (keepalive.py): losing the channel ends what is open on it.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kserve_ext.core.kv_landing import LandingPlan
from runtimes.transport.channel import ChannelError, Frame, Pages, Rung
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.keepalive import Wrap, plain
from runtimes.vllm_pd.kv_memory import KvMemory, KvPart
from runtimes.vllm_pd.peers import transfer_s

_REMEMBERED = 64
#: How often the peers hear that their blocks are still wanted. By the engine's thread: one that hangs says nothing.
HEARTBEAT_S = 5.0
#: How long blocks of a transfer that has ended may still be written to: by a peer that waits for its device before it
#: says that it has stopped, or by a reader that waits for the rest of a write. Then the channel is lost.
STOP_S = 5.0

#: Hears what prefill says of its side of a transfer, before or after it has ended.
Told = Callable[[jobs.Computed | jobs.Sent], None]


class Outcome(NamedTuple):
    """How a transfer ended; `reason` is "" when it is whole."""

    reason: str
    rung: str
    bytes: int
    blocks: int
    tokens: int
    ms: float


class Prompt(NamedTuple):
    """What prefill shall compute for a request, and who hears of it."""

    request_id: str
    tokens: list[int]
    closed: Callable[[Outcome], None]
    told: Told
    rung: Rung | Literal[""] = ""  # that its blocks shall take; "": the best
    held: int = 0  # blocks at its start that this engine seems to have, so that the peer may fetch them

    def job(self, number: int, rung: str) -> jobs.Prefill:
        return jobs.Prefill(number, self.request_id, self.tokens, rung, self.held)


@dataclass(slots=True, eq=False)
class _Transfer:
    number: int
    channel: Channel
    rung: str  # that it was asked to take, then the one it took
    direct: bool  # the peer writes into our blocks itself
    prompt: int  # tokens
    opened: float
    deadline: float
    closed: Callable[[Outcome], None]
    told: Told
    memory: KvMemory | KvPart
    plan: LandingPlan | None = None
    engine_request: str = ""
    tokens: int = 0
    blocks: int = 0
    bytes: int = 0
    first_at: float = 0.0
    writing: int = 0  # readers that are
    stopped: bool = False  # the peer writes nothing of it any more
    ending: str | None = None  # the reason with which it ends as soon as nobody is writing; "" = whole
    ended: float = 0.0  # when that was decided

    @property
    def held(self) -> bool:
        """Somebody may be writing into its blocks."""
        under_way = self.direct and self.plan is not None and not self.stopped
        return self.writing > 0 or (bool(self.ending) and under_way)


class Landings:
    """All transfers into this engine. `timeout_s`: the longest time that any may take."""

    def __init__(
        self, memory: KvMemory, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._memory = memory
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._transfers: dict[int, _Transfer] = {}
        self._results: list[tuple[str, bool]] = []
        self._renewed_at = clock()
        #: The last blocks may be here before the job's times: whom to tell these, of the last few transfers.
        self._whole: OrderedDict[int, tuple[Channel, Told]] = OrderedDict()

    def attach(self, channel: Channel, wrap: Wrap = plain) -> None:
        door = self.door(channel)
        channel.start(*wrap(door, door))
        self._memory.once(channel.expose)

    def door(self, channel: Channel) -> Door:
        """What a channel that somebody else starts tells us."""
        return Door(self, channel)

    def open_on(self, channel: Channel) -> int:
        """How many transfers are open on it."""
        return sum(transfer.channel is channel for transfer in list(self._transfers.values()))

    # --- event loop

    def open(self, channel: Channel, prompt: Prompt) -> int:
        """Asks the peer to compute this prompt, and to send its blocks. Raises ChannelError."""
        transfer = self._begin(channel, len(prompt.tokens), prompt.closed, prompt.told, prompt.rung)
        self._ask(transfer, prompt.job(transfer.number, transfer.rung))
        return transfer.number

    def _begin(
        self,
        channel: Channel,
        tokens: int,
        closed: Callable[[Outcome], None],
        told: Told,
        rung: Rung | Literal[""] = "",
    ) -> _Transfer:
        chosen = rung or channel.rung
        direct = channel.direct(chosen) if chosen != "none" else channel.direct()  # the second says why not
        with self._lock:
            number = next(self._numbers) & 0xFFFFFFFF
            now = self._clock()
            ahead = sum(t.prompt for t in self._transfers.values() if t.channel is channel)
            deadline = now + transfer_s(ahead + tokens, self._timeout_s)
            transfer = _Transfer(
                number, channel, chosen, direct, tokens, now, deadline, closed, told, self._memory
            )
            self._transfers[number] = transfer
        return transfer

    def _ask(self, transfer: _Transfer, job: jobs.FromReceiver) -> None:
        try:
            transfer.channel.send(jobs.encode(job))
        except ChannelError:
            with self._lock:
                self._transfers.pop(transfer.number, None)
            raise

    def cancel(self, number: int, reason: str) -> None:
        """The request is gone, or doesn't need it. Nothing happens if the transfer has ended."""
        self._end(self._transfers.get(number), reason)

    # --- engine

    def reserve(
        self, number: int, engine_request: str, skip: int, targets: Sequence[int], tokens: int
    ) -> None:
        """The engine waits for these blocks; `results` will name the request exactly once."""
        with self._lock:
            transfer = self._transfers.get(number)
            if transfer is None or transfer.ending is not None:
                self._results.append((engine_request, False))
                return
            transfer.plan = LandingPlan(self._memory.layers, targets)
            transfer.engine_request = engine_request
            transfer.tokens = tokens
            transfer.blocks = len(targets)
        reserve = jobs.Reserve(number, skip, list(targets), self._memory.layers, self._memory.block_bytes)
        with contextlib.suppress(ChannelError):  # losing the channel ends the transfer
            transfer.channel.send(jobs.encode(reserve))

    def claim(
        self,
        channel: Channel,
        source: int,
        engine_request: str,
        skip: int,
        targets: Sequence[int],
        tokens: int,
        closed: Callable[[Outcome], None],
        part: KvPart | None = None,
        offset: int = 0,
        *,
        back: bool = False,
    ) -> int:
        """Asks for blocks of transfer `source` as the peer knows it, into these: `results` will name the request.

        `part`: what is wanted of each of our blocks; it lies at `offset` in the peer's. `back`: the peer is the side
        that dialled. Raises ChannelError.
        """
        memory = part or self._memory
        # A GPU's blocks go through rings, and these go one way.
        rungs = () if back and self._memory.on_gpu else channel.rungs
        rung = next((r for r in rungs if channel.fits(r, back=back, parts=part is not None)), None)
        if rung is None:
            raise ChannelError("incompatible", f"no rung for these blocks: {'; '.join(channel.passed)}")
        transfer = self._begin(channel, tokens, closed, _nothing, rung)
        with self._lock:
            transfer.memory = memory
            transfer.plan = LandingPlan(memory.layers, targets)
            transfer.engine_request = engine_request
            transfer.tokens, transfer.blocks = tokens, len(targets)
        size = memory.block_bytes
        where = (source, skip, list(targets), memory.layers, size, offset)
        claim = jobs.Claim(transfer.number, *where, rung)
        self._ask(transfer, claim)
        return transfer.number

    def results(self) -> tuple[set[str], set[str]]:
        """Requests whose transfer has ended since the last call, and those of them that failed."""
        now = self._clock()
        for transfer in [t for t in list(self._transfers.values()) if t.deadline < now]:
            self._end(transfer, "timeout")
        for transfer in [t for t in list(self._transfers.values()) if t.held and now - t.ended > STOP_S]:
            if transfer.ending:
                why = f"it has not stopped writing for {STOP_S:g} s"
                transfer.channel.lose(ChannelError("timeout", why))
        if now - self._renewed_at >= HEARTBEAT_S:
            self._renewed_at = now
            self._renew()
        with self._lock:
            taken, self._results = self._results, []
        return {name for name, _ in taken}, {name for name, whole in taken if not whole}

    def _renew(self) -> None:
        """One message to each peer, whose lease on the blocks that we wait for begins anew."""
        open_on: dict[Channel, list[int]] = {}
        for transfer in list(self._transfers.values()):
            if transfer.ending is None:
                open_on.setdefault(transfer.channel, []).append(transfer.number)
        for channel, numbers in open_on.items():
            with contextlib.suppress(ChannelError):  # losing the channel ends its transfers
                channel.send(jobs.encode(jobs.Renew(0, numbers)))

    @property
    def open_transfers(self) -> int:
        return len(self._transfers)

    def channel(self, number: int) -> Channel | None:
        """That an open transfer is on."""
        transfer = self._transfers.get(number)
        return transfer.channel if transfer is not None else None

    # --- channel readers (through Door)

    def window(self, channel: Channel, frame: Frame) -> memoryview | Pages | None:
        with self._lock:
            transfer = self._expecting(channel, frame)
            if transfer is None or transfer.plan is None:
                return None
            if transfer.plan.expects(frame.layer, frame.target, frame.blocks):
                self._begun(transfer, frame)
                return transfer.memory.view(frame.layer, frame.target, frame.blocks)
        self._unexpected(transfer)
        return None

    def expects(self, channel: Channel, frame: Frame, targets: Sequence[int]) -> bool:
        """Blocks with all their layers, many at once: for a cache on a GPU."""
        with self._lock:
            transfer = self._expecting(channel, frame)
            if transfer is None or transfer.plan is None:
                return False
            if transfer.plan.expects_all(0, targets):
                self._begun(transfer, frame)
                return True
        self._unexpected(transfer)
        return False

    def _unexpected(self, transfer: _Transfer) -> None:
        """Directly, it is written all the same: perhaps over what was checked."""
        if transfer.direct:
            self._end(transfer, "unexpected")

    def landed(self, frame: Frame, broken: Sequence[int], targets: Sequence[int] | None = None) -> None:
        """`targets`: None = neighbours, as the frame says."""
        blocks = range(frame.target, frame.target + frame.blocks) if targets is None else targets
        with self._lock:
            transfer = self._transfers.get(frame.transfer)
            if transfer is None or transfer.plan is None:
                return
            transfer.writing -= 1
            transfer.bytes += len(blocks) * transfer.memory.block_bytes
            transfer.plan.landed_all(frame.layer, blocks, broken)
            ending = transfer.ending
        if broken:
            self._end(transfer, "checksum")
        elif ending is not None:
            self._end(transfer, ending)

    def _expecting(self, channel: Channel, frame: Frame) -> _Transfer | None:
        """With the lock held."""
        transfer = self._transfers.get(frame.transfer)
        gone = transfer is None or transfer.channel is not channel or transfer.ending is not None
        return None if gone else transfer

    def _begun(self, transfer: _Transfer, frame: Frame) -> None:
        """With the lock held: somebody writes."""
        if not transfer.first_at:
            transfer.first_at = self._clock()
        transfer.writing += 1
        transfer.rung = frame.rung

    def done(self, channel: Channel, number: int) -> None:
        transfer = self._transfers.get(number)
        if transfer is not None and transfer.channel is channel and transfer.plan is not None:
            self._end(transfer, "" if transfer.plan.whole else "incomplete")

    def message(self, channel: Channel, job: jobs.Job) -> None:
        with self._lock:
            transfer = self._transfers.get(job.transfer)
            owner, told = self._whole.get(job.transfer, (None, None))
        if transfer is not None:
            owner, told = transfer.channel, transfer.told
        if owner is not channel or told is None:
            return
        if isinstance(job, jobs.Failed | jobs.Stopped):
            if transfer is not None:
                transfer.stopped = True
            self._end(transfer, job.reason if isinstance(job, jobs.Failed) else "stopped")
        elif isinstance(job, jobs.Computed | jobs.Sent):
            told(job)

    def lost(self, channel: Channel, error: ChannelError) -> None:
        for transfer in [t for t in list(self._transfers.values()) if t.channel is channel]:
            transfer.writing, transfer.stopped = 0, True
            self._end(transfer, f"channel-{error.reason}")

    # --- the one way a transfer ends

    def _end(self, transfer: _Transfer | None, reason: str) -> None:
        if transfer is None:
            return
        with self._lock:
            if self._transfers.get(transfer.number) is not transfer:
                return
            first = transfer.ending is None
            if first:
                transfer.ending, transfer.ended = reason, self._clock()
            reason, held = transfer.ending or "", transfer.held
            if not held:
                self._forget(transfer, reason)
        if first and reason and not transfer.stopped:
            with contextlib.suppress(ChannelError):
                transfer.channel.send(jobs.encode(jobs.Cancel(transfer.number, reason)))
        if held:
            return  # landed(), message() or lost() comes back to it
        ms = (self._clock() - transfer.first_at) * 1000 if transfer.first_at else 0.0
        tokens = transfer.tokens if not reason else 0
        transfer.closed(Outcome(reason, transfer.rung, transfer.bytes, transfer.blocks, tokens, ms))

    def _forget(self, transfer: _Transfer, reason: str) -> None:
        """With the lock held."""
        del self._transfers[transfer.number]
        if not reason:
            self._whole[transfer.number] = transfer.channel, transfer.told
            while len(self._whole) > _REMEMBERED:
                self._whole.popitem(last=False)
        if transfer.engine_request:
            self._results.append((transfer.engine_request, reason == ""))


class Door:
    """Ties what a channel says to that channel: a peer can't touch another peer's transfers."""

    __slots__ = ("_channel", "_landings")

    def __init__(self, landings: Landings, channel: Channel) -> None:
        self._landings = landings
        self._channel = channel

    def message(self, channel: object, body: bytes) -> None:
        self.take(jobs.read(body))

    def take(self, job: jobs.Job) -> None:
        self._landings.message(self._channel, job)

    def lost(self, channel: object, error: ChannelError) -> None:
        self._landings.lost(self._channel, error)

    def window(self, frame: Frame) -> memoryview | Pages | None:
        return self._landings.window(self._channel, frame)

    def landed(self, frame: Frame, broken: list[int]) -> None:
        self._landings.landed(frame, broken)

    def expects(self, frame: Frame, targets: Sequence[int]) -> bool:
        return self._landings.expects(self._channel, frame, targets)

    def arrived(self, frame: Frame, targets: Sequence[int], broken: Sequence[int]) -> None:
        self._landings.landed(frame, broken, targets)

    def done(self, transfer: int, blocks: int) -> None:
        self._landings.done(self._channel, transfer)


def _nothing(job: jobs.Computed | jobs.Sent) -> None:
    """Nobody asks when what was claimed was computed."""
