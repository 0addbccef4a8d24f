"""Activators that share a revision's slots, on a virtual clock: the real cores, and a network that can be cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kserve_ext.core import rendezvous
from kserve_ext.core.dispatch.facts import Demand, Grant
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.core.knative.activation import Activation, Room, Tracker
from kserve_ext.core.knative.assignment import share_of
from kserve_ext.core.sharing.home import SharingHome
from kserve_ext.core.sharing.own import own_slots
from kserve_ext.core.sharing.shard import SharingShard

KEY = RevisionKey("ns/r")
STEP_S = 0.1


@dataclass(frozen=True)
class Request:
    id: int
    started: float
    held_bytes: int = 1


@dataclass
class Member:
    """One activator's process."""

    id: FunctionID
    incarnation: int
    activation: Activation[Request]
    shard: SharingShard
    home: SharingHome | None = None
    terms: int = 0
    asked: set[FunctionID] = field(default_factory=set)
    pods: tuple[str, ...] = ()
    listed: tuple[FunctionID, ...] = ()
    reached: tuple[FunctionID, ...] = ()
    running: list[tuple[Request, str]] = field(default_factory=list)


class World:
    """`concurrency` slots a pod. `post` takes what is said: by default it is delivered in order by `settle`."""

    def __init__(self, concurrency: int, pods: int, names: str, *, stock: str = "") -> None:
        self.concurrency = concurrency
        self.now = 100.0
        self.pods = tuple(f"p{k}" for k in range(pods))
        self.listed = tuple(FunctionID(name) for name in sorted(names + stock))
        self.cut: set[frozenset[FunctionID]] = set()
        self.letters: list[Callable[[], None]] = []
        self.members: dict[FunctionID, Member] = {}
        self._requests = 0
        self._incarnations = 0
        for name in names:
            self.start(FunctionID(name))
        self.look()

    # --- processes and what they see

    def start(self, name: FunctionID) -> Member:
        self._incarnations += 1
        activation: Activation[Request] = Activation(
            self.concurrency, 1000, Room(1 << 20), random.Random(1).random
        )
        shard = SharingShard(KEY, activation, self._incarnations)
        member = self.members[name] = Member(name, self._incarnations, activation, shard)
        self.reach()
        return member

    def kill(self, name: FunctionID) -> None:
        """Its connections to pods are reset, so what it had in flight is no more."""
        del self.members[name]
        for other in self.members.values():
            other.shard.gone(name, self.now)
        self.reach()

    def reach(self) -> None:
        """Everybody knows who can be reached: they greet each other."""
        for member in self.members.values():
            reached = (o for o in self.members if o == member.id or self.linked(member.id, o))
            member.reached = tuple(sorted(reached))
            self._view(member)

    def look(self, *members: Member) -> None:
        """They see pods and activators as they are; all of them if none is named."""
        for member in members or self.members.values():
            member.pods, member.listed = self.pods, self.listed
            member.activation.use(member.pods)
            share = share_of(member.id, member.listed)
            if share is not None:
                member.activation.take_share(share)
            self._view(member)

    def linked(self, one: FunctionID, two: FunctionID) -> bool:
        return frozenset((one, two)) not in self.cut

    def _view(self, member: Member) -> None:
        ours = [o for o in member.listed if o in member.reached]
        own = own_slots([InstanceID(p) for p in member.pods], self.concurrency, member.listed, ours)
        alone = len(member.reached) == 1 and member.shard.grants is None
        home = None if alone else rendezvous.owner(KEY, ours)
        if home != member.id:
            member.home = None
        member.shard.view(home, own.get(member.id, {}), self.now)
        if member.home is not None:
            incarnations = {o: self.members[o].incarnation for o in member.reached if o in self.members}
            member.home.view([InstanceID(p) for p in member.pods], own, incarnations, self.now)
        self._drain(member)

    # --- requests

    def submit(self, member: Member) -> None:
        self._requests += 1
        request = Request(self._requests, self.now)
        if self.now >= member.activation.valid_until:
            member.shard.tick(self.now)
        outcome = member.activation.submit(request)
        if isinstance(outcome, Tracker):
            member.running.append((request, outcome.addr))
        else:
            self._wants(member)

    def finish(self, member: Member, at: int) -> None:
        _, pod = member.running.pop(at)
        if self.now >= member.activation.valid_until:
            member.shard.tick(self.now)
        following = member.activation.release(member.activation.trackers[pod])
        if following is not None:
            member.running.append((following, pod))
        if member.activation.returned or (member.shard.scarce and following is None):
            member.activation.returned = False
            member.shard.freed()

    def _drain(self, member: Member) -> None:
        for request, tracker in member.activation.drain():
            member.running.append((request, tracker.addr))
        if member.activation.held and member.shard.silent(self.now):
            self._wants(member)

    def _wants(self, member: Member) -> None:
        if member.activation.pods and member.shard.home is not None:
            member.shard.wants(self.now)

    # --- what they say

    def advance(self, seconds: float, *, deliver: bool = True) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
            for member in list(self.members.values()):
                member.shard.tick(self.now)
                self._view(member)
                if member.home is not None:
                    member.home.tick(self.now)
                    member.asked.clear()
                    if member.home.over(self.now):
                        member.home = None
                    elif member.home.alone:
                        member.shard.release(self.now)
            self.speak()
            if deliver:
                self.settle()

    def speak(self) -> None:
        for member in list(self.members.values()):
            shard = member.shard
            if shard.due(self.now) <= self.now and shard.home is not None:
                self._send_demand(member, shard.home, shard.demand(self.now))
            home = member.home
            if home is not None:
                for other, grant in home.settled(self.now):
                    self._push(member, other, grant)
                for other in home.to_ask - member.asked:
                    member.asked.add(other)
                    self._recall(member, other, home)

    def settle(self) -> None:
        for _ in range(10_000):
            self.speak()
            if not self.letters:
                return
            self.letters.pop(0)()
        raise AssertionError("they never stop talking")

    def deliver(self, at: int) -> None:
        self.letters.pop(at)()

    def lose(self, at: int) -> None:
        """Whoever waits for it learns that it is lost."""
        letter = self.letters.pop(at)
        lost = getattr(letter, "lost", None)
        if lost is not None:
            lost()

    def _post(self, one: FunctionID, two: FunctionID, letter: Callable[[], None]) -> None:
        def arrive() -> None:
            if one in self.members and two in self.members and self.linked(one, two):
                letter()

        self.letters.append(arrive)

    def _send_demand(self, member: Member, home: FunctionID, demand: Demand) -> None:
        shard = member.shard

        def arrive() -> None:
            at = self.members.get(home)
            if at is None or not self.linked(member.id, home):
                self._late(member, demand)
                return
            grant = self._heard_at_home(at, member.id, demand)

            def back() -> None:
                if self.members.get(member.id) is not member:
                    return
                if grant is None or not self.linked(member.id, home):
                    self._late(member, demand)
                    return
                shard.grant(home, grant, self.now)
                shard.answered(demand.seq, self.now)
                self._drain(member)

            back.lost = lambda: self._late(member, demand)  # type: ignore[attr-defined]
            self.letters.append(back)

        arrive.lost = lambda: self._late(member, demand)  # type: ignore[attr-defined]
        self.letters.append(arrive)

    def _late(self, member: Member, demand: Demand) -> None:
        member.shard.unanswered(demand.seq, self.now)

    def _heard_at_home(self, at: Member, sender: FunctionID, demand: Demand) -> Grant | None:
        if at.shard.home != at.id:
            return None
        if at.home is None:
            at.terms += 1
            at.home = SharingHome(KEY, at.id, self.concurrency, at.incarnation * 1000 + at.terms, self.now)
            at.asked = set()
            self._view(at)
        return at.home.demand(sender, demand, self.now)

    def _push(self, member: Member, other: FunctionID, grant: Grant) -> None:
        def arrive() -> None:
            to = self.members[other]
            to.shard.grant(member.id, grant, self.now)
            self._drain(to)
            self._reply(to, member, to.shard.state(self.now))

        self._post(member.id, other, arrive)

    def _recall(self, member: Member, other: FunctionID, home: SharingHome) -> None:
        def arrive() -> None:
            to = self.members[other]
            self._reply(to, member, to.shard.recalled(member.id, self.now), home)

        self._post(member.id, other, arrive)

    def _reply(
        self, to: Member, member: Member, demand: Demand | None, home: SharingHome | None = None
    ) -> None:
        asking = home or member.home

        def arrive() -> None:
            if member.home is not None and member.home is asking:
                member.home.heard(to.id, demand, self.now)

        self._post(to.id, member.id, arrive)

    # --- what is looked at

    def usable(self, pod: str) -> int:
        """Slots of it that members may use, or still use."""
        total = 0
        for member in self.members.values():
            tracker = member.activation.trackers.get(pod)
            if tracker is not None:
                limit = tracker.limit if tracker.at >= 0 else 0
                total += max(limit, tracker.in_flight)
        return total

    def in_flight(self, pod: str) -> int:
        return sum(p == pod for member in self.members.values() for _, p in member.running)

    @property
    def held(self) -> int:
        return sum(member.activation.held for member in self.members.values())

    def check(self) -> None:
        for member in self.members.values():
            member.activation.check()
