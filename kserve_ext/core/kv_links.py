"""Which channels to KV peers stand: whom to dial, whom to ask whether it lives, which to close. An event machine.

A link is one peer and rank with the channel to it, if there is one. The machine keeps `pairs` of the eligible peers
connected, and whichever a lease names besides; it counts channels and never has more than `most`: the one that was
idle for longest makes room, one with open transfers never does. A peer in a new generation is another one: the old
channel is closed at once, whatever is open on it. A peer that can't be reached rests, for longer each time; one that
refused (incompatible blocks, no common rung) is not asked again in that generation. Whoever is silent for too long is
gone. Both sides run it: the side that listens has no eligible peers, and dials nobody. Pure: moves no bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from kserve_ext.core import rendezvous
from kserve_ext.core.backoff import pause_s

LEAST_REST_S: Final = 1.0
MOST_REST_S: Final = 15.0
STEADY_S: Final = 10.0  # a channel that stood for so long was no mistake: its loss is a first failure

IDLE_QUIET_S: Final = 2.0  # nothing heard for so long: ask
QUIET_S: Final = 1.0  # while transfers wait
IDLE_ANSWER_S: Final = 4.0
ANSWER_S: Final = 2.0  # a process that lives answers within this, however busy its engine is
STALLED_S: Final = 1.0  # between two ticks: we were away ourselves, and judge nobody by that time
IN_HAND_S: Final = 1.0  # after a channel was given out, its transfer may be about to begin
NAMED_S: Final = 60.0  # a lease's word counts for so long where no list of peers comes

State = Literal["dialling", "up", "down"]


class Key(NamedTuple):
    peer: str
    rank: int = 0


class Peer(NamedTuple):
    """One that may be dialled, as home or a lease says."""

    name: str
    addr: str
    generation: int = 0  # 0 = whichever it is
    ranks: int = 1


class Dial(NamedTuple):
    """Answered by `stood` or `failed`, with its number. The generation `refused_by` would only refuse again."""

    key: Key
    number: int
    addr: str
    generation: int
    refused_by: int | None = None


class Close(NamedTuple):
    """The channel that came of this number; one that is not there any more, or not yet, is no mistake."""

    key: Key
    number: int
    reason: str
    detail: str


class Ping(NamedTuple):
    key: Key
    number: int


Instruction = Dial | Close | Ping


class Refusal(NamedTuple):
    """Why no channel can be had now: the reason of its last failure, or "limit"."""

    reason: str
    detail: str


@dataclass(slots=True)
class Link:
    key: Key
    addr: str
    #: the generation that home or a lease has told, 0 = whichever it is
    meant: int
    #: of the channel that stands or stood last
    generation: int = 0
    state: State = "down"
    #: of its last dial, or acceptance: what comes of an earlier one is void
    number: int = 0
    since: float = 0.0
    heard_at: float = 0.0
    asked_at: float | None = None
    used_at: float = float("-inf")
    named_at: float = float("-inf")
    transfers: int = 0
    #: dials and channels that failed in a row
    failures: int = 0
    retry_at: float = float("-inf")
    #: why it is down, "" if that isn't a failed dial
    refusal: Refusal | None = None
    #: it was refused for good by this generation
    refused_by: int | None = None

    def idle(self, now: float) -> bool:
        return not self.transfers and now - self.used_at >= IN_HAND_S

    @property
    def counts(self) -> bool:
        return self.state != "down"


class Links:
    """`me` spreads a service's instances over their peers. `chance`: 0 to 1. `refusals`: what no time mends."""

    def __init__(
        self,
        me: str,
        pairs: int,
        most: int,
        chance: Callable[[], float],
        refusals: Iterable[str] = ("incompatible",),
    ) -> None:
        self._me = me
        self._pairs = min(pairs, most)
        self._most = most
        self._chance = chance
        self._refusals = frozenset(refusals)
        self._numbers = 0
        self._ticked_at: float | None = None
        self._listed_at = float("-inf")
        self._peers: dict[str, Peer] = {}  # the eligible ones, in this instance's own order
        self.known: dict[Key, Link] = {}

    # --- who there is

    def peers(self, peers: Sequence[Peer], now: float) -> list[Instruction]:
        """All that are eligible. Whoever is not is let go as soon as nothing is open on its channel."""
        out: list[Instruction] = []
        self._listed_at = now
        named = {peer.name: peer for peer in peers}
        self._peers = {name: named[name] for name in rendezvous.ranked(self._me, named)}
        for peer in peers:
            for rank in range(peer.ranks):
                key = Key(peer.name, rank)
                link = self.known.setdefault(key, Link(key, peer.addr, peer.generation, since=now))
                self._meant(link, peer.addr, peer.generation, now, out)
        return self._settle(now, out)

    def want(
        self, key: Key, addr: str, generation: int, now: float
    ) -> tuple[Refusal | None, list[Instruction]]:
        """A lease names it: its channel stands or is dialled from now on, or why not."""
        out: list[Instruction] = []
        link = self.known.setdefault(key, Link(key, addr, generation, since=now))
        link.named_at = now
        self._meant(link, addr, generation, now, out)
        refusal: Refusal | None = None
        if link.counts:
            link.used_at = now
        elif self._rests(link, now) and link.refusal is not None:
            refusal = link.refusal
        elif not self._room(now, out):
            refusal = Refusal(
                "limit", f"all {self._most} channels have open transfers: raise --kv-most-channels"
            )
        else:
            link.used_at = now
            self._dial(link, now, out)
        return refusal, self._settle(now, out)

    def usable(self, now: float) -> tuple[set[str], dict[str, Refusal]]:
        """Peers with a channel that stands, and those that no lease should name now, with why."""
        standing = {key.peer for key, link in self.known.items() if link.state == "up"}
        resting = {
            key.peer: link.refusal
            for key, link in self.known.items()
            if not link.counts and link.refusal is not None and self._rests(link, now)
        }
        return standing - resting.keys(), resting

    # --- what comes of dials, and who dials us

    def stood(self, key: Key, number: int, generation: int, now: float) -> list[Instruction]:
        link = self.known.get(key)
        if link is None or link.number != number or link.state != "dialling":
            return [Close(key, number, "closed", "nobody wants it any more")]
        self._up(link, generation, now)
        return self._settle(now, [])

    def failed(
        self, key: Key, number: int, reason: str, detail: str, generation: int, now: float
    ) -> list[Instruction]:
        """`generation`: of whoever answered, 0 if nobody did."""
        link = self.known.get(key)
        if link is None or link.number != number or link.state != "dialling":
            return []
        self._down(link, now)
        link.refusal = Refusal(reason, detail)
        if reason in self._refusals:
            link.refused_by, link.retry_at = generation or link.meant, now + MOST_REST_S
        return self._settle(now, [])

    def accepted(self, key: Key, generation: int, now: float) -> tuple[int, list[Instruction]]:
        """A peer's channel, and the number that it has from now on. It may be told to close at once."""
        out: list[Instruction] = []
        self._numbers += 1
        number = self._numbers
        link = self.known.setdefault(key, Link(key, "", generation, since=now))
        if link.state == "up" and generation < link.generation:
            out.append(Close(key, number, "generation", f"generation {link.generation} has been here"))
            return number, out
        if link.state == "up":
            out.append(Close(key, link.number, "closed", "the peer has made another one"))
            self._down(link, now)
        if not self._room(now, out):
            del self.known[key]
            out.append(Close(key, number, "closed", f"all {self._most} channels have open transfers"))
            return number, out
        link.number = number
        self._up(link, generation, now)
        return number, self._settle(now, out)

    # --- channels that stand

    def seen(self, key: Key, number: int, heard_at: float, transfers: int) -> None:
        """When its peer was last heard of, and what is open on it: to be said before whatever may close one."""
        link = self.known.get(key)
        if link is None or link.number != number or link.state != "up":
            return
        if heard_at > link.heard_at:
            link.heard_at, link.asked_at = heard_at, None
        link.transfers = transfers
        if transfers:
            link.used_at = max(link.used_at, heard_at)

    def lost(self, key: Key, number: int, now: float) -> list[Instruction]:
        link = self.known.get(key)
        if link is None or link.number != number or link.state != "up":
            return []
        if now - link.since >= STEADY_S:
            link.failures = 0
        self._down(link, now)
        return self._settle(now, [])

    def tick(self, now: float) -> list[Instruction]:
        """Some times a second."""
        out: list[Instruction] = []
        stalled = self._ticked_at is not None and now - self._ticked_at > STALLED_S
        self._ticked_at = now
        for link in self.known.values():
            if link.state != "up":
                continue
            if stalled:
                link.heard_at, link.asked_at = max(link.heard_at, now - IDLE_QUIET_S), None
            self._listen(link, now, out)
        return self._settle(now, out)

    @property
    def eligible(self) -> int | None:
        """How many peers there are; None: nobody has said so yet."""
        return len(self._peers) if self._listed_at > float("-inf") else None

    # --- inside

    def _meant(self, link: Link, addr: str, generation: int, now: float, out: list[Instruction]) -> None:
        """Word of a later generation ends what is there of an earlier one; word of an earlier one is old."""
        link.addr = addr or link.addr
        before = link.generation if link.state == "up" else link.meant
        if not generation:
            link.meant = 0
        if generation <= link.meant or generation < before:
            return
        link.meant = generation
        if link.counts and not 0 < before < generation:
            return  # it leads there already, or is being dialled whichever it is
        if link.counts:
            why = f"generation {before} has gone, this is {generation}"
            out.append(Close(link.key, link.number, "generation", why))
        link.state, link.since, link.transfers = "down", now, 0
        if generation != link.refused_by:
            link.failures, link.retry_at, link.refusal, link.refused_by = 0, now, None, None

    def _listen(self, link: Link, now: float, out: list[Instruction]) -> None:
        quiet_s, answer_s = (QUIET_S, ANSWER_S) if link.transfers else (IDLE_QUIET_S, IDLE_ANSWER_S)
        if link.asked_at is not None:
            if now - link.asked_at >= answer_s:
                out.append(Close(link.key, link.number, "timeout", f"no answer for {answer_s:g} s"))
                if now - link.since >= STEADY_S:
                    link.failures = 0
                self._down(link, now)
        elif now - link.heard_at >= quiet_s:
            link.asked_at = now
            out.append(Ping(link.key, link.number))

    def _settle(self, now: float, out: list[Instruction]) -> list[Instruction]:
        """Lets go of whom nobody means any more, and dials who is missing."""
        for key, link in list(self.known.items()):
            if self._meant_still(link, now):
                continue
            if link.state == "down":
                del self.known[key]
            elif link.idle(now):
                self._close(link, "it is not among the peers any more", now, out)
                del self.known[key]
        for link in self._target(now):
            if (
                not link.counts and self._count < self._most
            ):  # never at the cost of one that a lease has named
                self._dial(link, now, out)
        return out

    def _meant_still(self, link: Link, now: float) -> bool:
        if not link.addr:  # it dials us: there as long as its channel
            return link.state != "down"
        if link.key.peer in self._peers:
            return True
        return link.named_at > self._listed_at and now - link.named_at < NAMED_S

    def _target(self, now: float) -> list[Link]:
        """The links that should stand without being asked for."""
        wanted: list[Link] = []
        left = self._pairs
        for name, peer in self._peers.items():
            links = [self.known[Key(name, rank)] for rank in range(peer.ranks)]
            if left and all(link.counts or not self._rests(link, now) for link in links):
                wanted += links
                left -= 1
        return wanted

    def _rests(self, link: Link, now: float) -> bool:
        """Not to be dialled now. Who has refused without a generation to remember it by is asked again, rarely."""
        if link.refused_by is not None and link.refused_by == link.meant != 0:
            return True
        return now < link.retry_at

    @property
    def _count(self) -> int:
        return sum(link.counts for link in self.known.values())

    def _room(self, now: float, out: list[Instruction]) -> bool:
        """Whether there may be one more channel, after the longest idle one has been closed if need be."""
        if self._count < self._most:
            return True
        idle = [link for link in self.known.values() if link.state == "up" and link.idle(now)]
        if not idle:
            return False
        self._close(min(idle, key=lambda link: (link.used_at, link.key)), "it makes room", now, out)
        return True

    def _dial(self, link: Link, now: float, out: list[Instruction]) -> None:
        self._numbers += 1
        link.number, link.state, link.since, link.refusal = self._numbers, "dialling", now, None
        out.append(Dial(link.key, link.number, link.addr, link.meant, link.refused_by))

    def _up(self, link: Link, generation: int, now: float) -> None:
        link.state, link.since, link.heard_at, link.asked_at = "up", now, now, None
        link.generation, link.transfers, link.refusal = generation, 0, None

    def _close(self, link: Link, why: str, now: float, out: list[Instruction]) -> None:
        """Nothing is wrong with it."""
        out.append(Close(link.key, link.number, "closed", why))
        link.state, link.since = "down", now

    def _down(self, link: Link, now: float) -> None:
        """Something is."""
        link.failures += 1
        link.state, link.since, link.transfers, link.refusal = "down", now, 0, None
        link.retry_at = now + pause_s(link.failures, LEAST_REST_S, MOST_REST_S, self._chance())

    def check(self) -> None:
        """Invariants, for tests."""
        assert self._count <= self._most
        for key, link in self.known.items():
            assert link.key == key
            assert link.state == "up" or not link.transfers
