"""Decode's front of an engine whose ranks are processes: opens transfers, and hears from the ranks how they ended.

Has the face of Landings (landing.py) towards whoever opens transfers, and none of its blocks: only messages travel on
its channels. A transfer has ended when it has at every rank, with the first reason that one of them gives; the engine
itself learns it from the ranks. Called by the event loop, the engine's thread and channel readers.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from runtimes.transport.channel import ChannelError
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.keepalive import Wrap, plain
from runtimes.vllm_pd.landing import Outcome, Prompt, Told
from runtimes.vllm_pd.ranks.words import Landed, News, PeerRanks, together
from runtimes.vllm_pd.scheduler_side import Plan, Reservation

_REMEMBERED = 64


@dataclass(slots=True, eq=False)
class _Transfer:
    number: int
    channel: Channel
    closed: Callable[[Outcome], None]
    told: Told
    reserved: bool = False  # the ranks know of it: they say how it ends
    outcomes: list[Outcome] = field(default_factory=list)
    ended: int = 0  # ranks at which it has


class FrontLandings:
    """All transfers into this engine of `ranks` ranks, numbered from `first` on."""

    def __init__(self, ranks: int, first: int = 1) -> None:
        self._ranks = ranks
        self._lock = threading.Lock()
        self._numbers = itertools.count(first)
        self._transfers: dict[int, _Transfer] = {}
        self._peers: dict[Channel, PeerRanks | None] = {}  # None: they don't listen yet
        self._unused: list[int] = []  # what the ranks must be told
        self._tellable: dict[int, tuple[Channel, Told]] = {}  # the last transfers that were whole
        #: Called with the ranks of a peer as soon as they are known, from a channel's reader.
        self.on_peer: Callable[[PeerRanks], None] = lambda peer: None

    def attach(self, channel: Channel, wrap: Wrap = plain) -> None:
        with self._lock:
            self._peers[channel] = None
        channel.start(*wrap(self, None))

    @property
    def peers(self) -> list[PeerRanks]:
        """Whose ranks are known."""
        with self._lock:
            return [peer for peer in self._peers.values() if peer is not None]

    @property
    def open_transfers(self) -> int:
        return len(self._transfers)

    def open_on(self, channel: Channel) -> int:
        return sum(transfer.channel is channel for transfer in list(self._transfers.values()))

    # --- event loop

    def open(self, channel: Channel, prompt: Prompt) -> int:
        """Asks the peer to compute this prompt. Raises ChannelError. What decode holds can't be fetched by ranks."""
        with self._lock:
            if self._peers.get(channel) is None:
                raise ChannelError("unreachable", f"the ranks of {channel.peer.name} don't listen yet")
            number = next(self._numbers) & 0xFFFFFFFF
            self._transfers[number] = _Transfer(number, channel, prompt.closed, prompt.told)
        try:
            channel.send(jobs.encode(prompt._replace(held=0).job(number, prompt.rung)))
        except ChannelError:
            with self._lock:
                self._transfers.pop(number, None)
            raise
        return number

    def cancel(self, number: int, reason: str) -> None:
        """The request is gone, or doesn't need it. Nothing happens if the transfer has ended."""
        self._stop(self._transfers.get(number), reason)

    # --- engine

    def outgoing(self, plan: Plan) -> Plan:
        """What the ranks get to know of a step's plan: where their peers are, and which transfers have ended."""
        with self._lock:
            unused, self._unused = self._unused, []
            reserve: list[Reservation] = []
            failed: list[str] = []
            for reservation in plan.reserve:
                transfer = self._transfers.get(reservation.transfer)
                peer = self._peers.get(transfer.channel) if transfer is not None else None
                if transfer is None or peer is None:
                    failed.append(reservation.request)
                    continue
                transfer.reserved = True
                reserve.append(reservation._replace(peer=peer))
        for number in plan.unused:
            self._stop(self._transfers.get(number), "not needed")
        return plan._replace(
            reserve=tuple(reserve), unused=(*plan.unused, *unused), failed=(*plan.failed, *failed)
        )

    def incoming(self, news: News) -> None:
        for landed in news.landed:
            self._landed(landed)

    # --- channel readers

    def message(self, channel: object, body: bytes) -> None:
        assert isinstance(channel, Channel)
        job = jobs.read(body)
        if isinstance(job, jobs.Ranks):
            peer = PeerRanks(channel.peer.name, channel.peer.generation, tuple(job.addrs))
            with self._lock:
                self._peers[channel] = peer
            self.on_peer(peer)
            return
        with self._lock:
            transfer = self._transfers.get(job.transfer)
            owner, told = self._tellable.get(job.transfer, (None, None))
            if transfer is not None:
                owner, told = transfer.channel, transfer.told
        if owner is not channel or told is None:
            return
        if isinstance(job, jobs.Failed):
            self._stop(transfer, job.reason, tell=False)
        elif isinstance(job, jobs.Computed | jobs.Sent):
            told(job)

    def lost(self, channel: object, error: ChannelError) -> None:
        assert isinstance(channel, Channel)
        with self._lock:
            self._peers.pop(channel, None)
            open_here = [t for t in self._transfers.values() if t.channel is channel]
        for transfer in open_here:
            self._stop(transfer, f"channel-{error.reason}", tell=False)

    # --- the ways a transfer ends

    def _stop(self, transfer: _Transfer | None, reason: str, tell: bool = True) -> None:
        """At once if no rank knows of it; else they are told, and say when it has ended."""
        if transfer is None:
            return
        with self._lock:
            if self._transfers.get(transfer.number) is not transfer:
                return
            if transfer.reserved:
                transfer.outcomes.append(Outcome(reason, "none", 0, 0, 0, 0.0))
                self._unused.append(transfer.number)
            else:
                del self._transfers[transfer.number]
        if tell:
            with contextlib.suppress(ChannelError):
                transfer.channel.send(jobs.encode(jobs.Cancel(transfer.number, reason)))
        if not transfer.reserved:
            transfer.closed(Outcome(reason, "none", 0, 0, 0, 0.0))

    def _landed(self, landed: Landed) -> None:
        with self._lock:
            transfer = self._transfers.get(landed.transfer)
            if transfer is None:
                return
            transfer.outcomes.append(landed.outcome)
            transfer.ended += 1
            if transfer.ended < self._ranks:
                return
            del self._transfers[landed.transfer]
            outcome = together(transfer.outcomes)
            if not outcome.reason:
                self._tellable[transfer.number] = transfer.channel, transfer.told
                while len(self._tellable) > _REMEMBERED:
                    del self._tellable[next(iter(self._tellable))]
        if outcome.reason:
            with contextlib.suppress(ChannelError):
                transfer.channel.send(jobs.encode(jobs.Cancel(transfer.number, outcome.reason)))
        transfer.closed(outcome)
