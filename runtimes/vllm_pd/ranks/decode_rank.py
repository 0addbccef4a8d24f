"""One tensor-parallel rank of decode, in its process: claims blocks of the ranks of prefill that have its heads.

Those may be several, or one that has more: each sends the part that both hold (core/kv_ranks.py). A transfer has
ended here when each part has; one that fails takes the others with it. Called by the worker's thread; channels are
dialled on others, and read on theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kserve_ext.core.kv_ranks import Bytes, Part, held, parts, within
from runtimes.transport.channel import ChannelError
from runtimes.transport.listener import dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome
from runtimes.vllm_pd.ranks.words import Landed, News, PeerRanks, Settings, rank_name, together
from runtimes.vllm_pd.scheduler_side import Plan, Reservation

_DIALS = 8

Dial = Callable[[str, int], Channel]


@dataclass(slots=True, eq=False)
class _Awaited:
    """What the engine waits for. Each part is claimed once, or fails without."""

    reservation: Reservation
    left: int
    claims: list[int] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    ending: str = ""

    def over(self) -> str:
        """Why it is to end, if it is; by whichever thread."""
        return self.ending


class Dialled:
    """Channels to ranks of prefill, one each; `dial` gives one to an address, in a generation."""

    def __init__(self, dial: Dial, attach: Callable[[Channel], None]) -> None:
        self._dial = dial
        self._attach = attach
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._channels: dict[str, Channel] = {}  # by the rank's name

    def standing(self, peer: PeerRanks, rank: int) -> Channel | None:
        channel = self._channels.get(rank_name(peer.name, rank))
        stands = channel is not None and channel.lost is None and channel.peer.generation == peer.generation
        return channel if stands else None

    def get(self, peer: PeerRanks, rank: int) -> Channel:
        """Blocks while it is dialled. Raises ChannelError."""
        name = rank_name(peer.name, rank)
        with self._lock:
            own = self._locks.setdefault(name, threading.Lock())
        with own:
            channel = self.standing(peer, rank)
            if channel is None:
                channel = self._dial(peer.addrs[rank], peer.generation)
                if channel.peer.name != name:
                    channel.close()
                    raise ChannelError("generation", f"{channel.peer.name} listens where {name} was meant")
                self._attach(channel)
                self._keep(name, channel)
            return channel

    def _keep(self, name: str, channel: Channel) -> None:
        """Instead of what was there before, and of those that are lost: instances come and go."""
        with self._lock:
            before = self._channels.pop(name, None)
            standing = {known: other for known, other in self._channels.items() if other.lost is None}
            self._channels = {**standing, name: channel}
        if before is not None:
            before.close()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


class DecodeRank:
    def __init__(self, settings: Settings, rank: int, key: bytes, memory: KvMemory | None = None) -> None:
        self._degree = settings.layout.tensor_parallel
        self._heads = settings.layout.kv_heads or 1
        self._rank = rank
        self._memory = memory or KvMemory()
        self._landings = Landings(self._memory, settings.transfer_s)
        who = settings.identity(rank)

        def to(addr: str, generation: int) -> Channel:
            return dial(addr, key, who, peer_generation=generation, rungs=settings.rungs)

        self._dialled = Dialled(to, self._landings.attach)
        self._pool = ThreadPoolExecutor(_DIALS, thread_name_prefix="kv-dial")
        self._lock = threading.Lock()
        self._awaited: dict[int, _Awaited] = {}  # by transfer, as the front calls it
        self._results: dict[str, bool] = {}  # requests whose transfer has ended, and whether it is whole
        self._news: list[Landed] = []

    @property
    def addr(self) -> str:
        return ""

    def prepare(self, peer: PeerRanks) -> None:
        """Dials ahead of the first transfer."""
        for part in self._parts(peer):
            self._pool.submit(self._dialled.get, peer, part.source)

    # --- the engine's steps

    def register(self, tensors: dict[str, Any], blocks: int) -> None:
        self._memory.register(tensors, blocks)

    def before_forward(self, plan: Plan) -> None:
        return

    def after_forward(self, plan: Plan) -> None:
        for transfer in plan.unused:
            self._give_up(self._awaited.get(transfer), "not needed")
        for request in plan.failed:
            self._results[request] = False
        for reservation in plan.reserve:
            self._reserve(reservation)

    def results(self, finished: set[str]) -> tuple[set[str], set[str], set[str]]:
        """Requests sent (none), received, and of these the failed ones."""
        self._landings.results()  # what is late ends
        with self._lock:
            told, self._results = self._results, {}
        return set(), set(told), {name for name, whole in told.items() if not whole}

    def news(self) -> News | None:
        with self._lock:
            landed, self._news = self._news, []
        return News(landed=tuple(landed)) if landed else None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._dialled.close()

    # --- a transfer

    def _parts(self, peer: PeerRanks) -> list[Part]:
        every = parts(self._heads, len(peer.addrs), self._degree)
        return [part for part in every if part.target == self._rank]

    def _reserve(self, r: Reservation) -> None:
        assert r.peer is not None
        wanted = self._parts(r.peer)
        awaited = _Awaited(r, len(wanted))
        with self._lock:
            self._awaited[r.transfer] = awaited
        for part in wanted:
            if self._dialled.standing(r.peer, part.source) is not None:
                self._claim(awaited, r.peer, part)
            else:
                self._pool.submit(self._claim, awaited, r.peer, part)

    def _claim(self, awaited: _Awaited, peer: PeerRanks, part: Part) -> None:
        r = awaited.reservation
        try:
            channel = self._dialled.get(peer, part.source)
            if reason := awaited.over():
                raise ChannelError("closed", reason)
            ours, theirs = self._ranges(part)
            whole = ours.size == self._memory.block_bytes
            number = self._landings.claim(
                channel,
                r.transfer,
                r.request,
                len(r.held),
                r.targets,
                r.tokens,
                partial(self._ended, awaited),
                None if whole else self._memory.part(*ours),
                theirs.offset,
            )
        except ChannelError as error:
            self._ended(awaited, Outcome(f"channel-{error.reason}", "none", 0, 0, 0, 0.0))
        except Exception as error:  # on a thread nobody else would hear of it
            self._ended(awaited, Outcome(f"{type(error).__name__}: {error}", "none", 0, 0, 0, 0.0))
        else:
            with self._lock:
                awaited.claims.append(number)
            if reason := awaited.over():
                self._landings.cancel(number, reason)

    def _ranges(self, part: Part) -> tuple[Bytes, Bytes]:
        """What it is of our blocks, and of theirs."""
        own = within(
            self._memory.block_bytes,
            len(held(self._heads, self._degree, self._rank)),
            part.target_head,
            part.heads,
        )
        each = own.size // part.heads
        return own, own._replace(offset=part.source_head * each)

    def _give_up(self, awaited: _Awaited | None, reason: str) -> None:
        if awaited is None:
            return
        with self._lock:
            awaited.ending = awaited.ending or reason
            claims = list(awaited.claims)
        for number in claims:
            self._landings.cancel(number, reason)

    def _ended(self, awaited: _Awaited, outcome: Outcome) -> None:
        """One part has, by whichever thread."""
        with self._lock:
            awaited.outcomes.append(outcome)
            awaited.left -= 1
            if not awaited.left:
                r = awaited.reservation
                del self._awaited[r.transfer]
                sum_ = together(awaited.outcomes)
                self._results[r.request] = not sum_.reason
                self._news.append(Landed(r.transfer, sum_))
        if outcome.reason:
            self._give_up(awaited, outcome.reason)
