"""Those who found no room: in whose name the next room is kept, and whose home is told.

Nobody is placed from here. A home that was refused asks again by itself, with growing pauses; in between its revision
(or its gang, as one) stands in this line. As soon as nodes have room, it is *booked* for whoever is next
(fairness.py): deducted from what the nodes have free, so that nobody who comes later gets it, and the home is told;
its next call takes the booking. One that no call comes for lapses, and so does a place in the line. For those who
have waited too long, and for those that others make room for (preemption.py), room that is still to come is kept
likewise, in order: what frees up goes to them and not to smaller ones that would fit sooner. All this is worked out
anew in every pass, in one order that is the same in every partition, so that two gangs that need two partitions
never wait for each other. A call that would find room of which no pass knows yet is preceded by one, so that nobody
gets past the line by asking at the right moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kserve_ext.core.facts import Resources, Revision
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.core.schedule.facts import BOOKED, AskRoom, Standing, TellRoom
from kserve_ext.core.schedule.fairness import AGED_S, Shares, in_turn
from kserve_ext.core.schedule.gangs import choose_gang
from kserve_ext.core.schedule.partition import Partition
from kserve_ext.core.schedule.preemption import Victims, keep, plan, plan_each, rooms

HEARD_S: Final = 10.0  # a home that hasn't asked again for so long doesn't want it any more
BOOKED_S: Final = 2.0  # and one that was told of room comes at once
GOING_S: Final = 10.0  # so long one that was asked to go counts as going, although its node still shows it
SPARED_S: Final = 10.0  # so long a home that can spare none is not asked again
REST_S: Final = 0.2  # between two times that one is told of room
PLAN_AGAIN_S: Final = 0.5
MOST_WAITING: Final = 1_000
MOST_MEMBERS: Final = 64
MOST_KEPT: Final = 8  # waiters for whom room to come is kept
MOST_COMPARED: Final = 16  # that found no room, with which each is compared before its nodes are looked for
MOST_MADE: Final = 16  # instances of one of them for which others make room at once


@dataclass(slots=True)
class Waiter:
    """A revision of which instances found no room, or a gang of which not all did."""

    key: str
    members: tuple[Revision, ...]  # one for each instance
    gang: bool
    home_addr: str
    since: float
    heard_at: float
    #: deductions in its name
    bookings: list[tuple[InstanceID, NodeID, Revision]] = field(default_factory=list)
    #: its bookings are free now, and its home knows
    told_at: float | None = None
    #: nodes on which room to come is kept, and when they were chosen
    kept: tuple[tuple[Revision, NodeID], ...] = ()
    planned_at: float = float("-inf")
    room_is_made: bool = False
    #: what it was told of was no room after all, it seems: not told again before
    rests_until: float = 0.0
    #: its home asks right now
    asking: bool = False
    #: its home was told of room and no call came in time: it is passed over until one does
    late: bool = False

    @property
    def namespace(self) -> str:
        return self.members[0].namespace

    @property
    def priority(self) -> int:
        return min(m.priority for m in self.members)  # a gang counts as its lowest

    @property
    def preempts(self) -> bool:
        return all(m.preempts for m in self.members)


class Line:
    def __init__(self, partition: Partition, weights: Mapping[str, float] | None = None) -> None:
        self.partition = partition
        #: of namespaces, 1 where none is given
        self.weights = dict(weights or {})
        self.waiters: dict[str, Waiter] = {}
        self.told_total = 0
        self.preempted_total = 0
        #: of a revision on a node: how many stay when those asked to go are gone, and until when that counts
        self._going: dict[tuple[RevisionKey, NodeID], tuple[int, float]] = {}
        self._spared: dict[RevisionKey, float] = {}
        #: what came of calls and nobody has been told yet, by key
        self._due: dict[str, TellRoom] = {}
        #: from then on one may find room that had no turn in the last pass (its call was under way, or it rested),
        #: or that has lost what it had there
        self._missed_at = float("inf")

    # --- events

    def asks(self, calls: Mapping[str, Sequence[Revision]], gang: bool, who: Standing, now: float) -> None:
        """A home asks. If nodes have come to have room for it since the last pass, that is given now, as in give().

        Else whoever happens to ask first would have it. Who asks has its turn among those who wait; when that comes,
        room is booked for it, so that comes() lets it have that. One that was late for its room has it after all, as
        long as it is only booked for a lower class: both may have been kept waiting by the same slow process.
        """
        for waiter in [w for key in calls if (w := self.waiters.get(key)) is not None and w.late]:
            waiter.late = False
            for other in self.waiters.values():
                if other.told_at is not None and other.priority < waiter.priority:
                    self._release(other)
                    self._missed_at = now  # should it be of no use to the late one
        best = self.partition.ranking.best
        news = self.partition.freed or now >= self._missed_at
        if not news or not any(best(r) for members in calls.values() for r in members):
            return
        for key, members in calls.items():
            if key not in self.waiters and who.home_addr:
                since = now - who.waited_s
                self.waiters[key] = Waiter(
                    key, tuple(members[:MOST_MEMBERS]), gang, who.home_addr, since, now, asking=True
                )
        for i in self._pass(now, calls):
            assert isinstance(i, TellRoom), "nobody is asked to make room before a call is over"
            self._due[i.key] = i

    def comes(self, keys: Sequence[str]) -> dict[RevisionKey, list[NodeID]]:
        """A home asks (again): what was kept for it is free for its call; where, if it was told that there is room.

        What it was told of was found before room to come was kept for those behind it: that counts from tried() on.
        """
        asking = [waiter for key in keys if (waiter := self.waiters.get(key)) is not None]
        told: dict[RevisionKey, list[NodeID]] = {}
        for waiter in asking:
            if waiter.told_at is not None:
                waiter.rests_until = waiter.told_at + REST_S
                for _, node, revision in waiter.bookings:
                    told.setdefault(revision.key, []).append(node)
            self._release(waiter)
            waiter.asking = True
        if told:
            for waiter in self.waiters.values():
                if waiter.told_at is None:
                    self._release(waiter)
        return told

    def tried(self, placed: Collection[str]) -> None:
        """The nodes here were looked at for a call, with success for `placed`: room to come is kept on."""
        for key, waiter in self.waiters.items():
            if key not in placed and not waiter.bookings:
                for revision, node in waiter.kept:
                    self._book(waiter, revision, node)

    def waits(
        self,
        key: str,
        members: Sequence[Revision],
        gang: bool,
        who: Standing,
        now: float,
        *,
        placed: bool = False,
    ) -> None:
        """It was refused for lack of room; `placed`: not all of it."""
        if not who.home_addr or not members:
            return
        waiter = self.waiters.get(key)
        members = tuple(members[:MOST_MEMBERS])
        since = now - who.waited_s
        if waiter is None:
            waiter = self.waiters[key] = Waiter(key, members, gang, who.home_addr, since, now)
        else:
            waiter.since, waiter.asking = min(waiter.since, since), False
            waiter.members, waiter.home_addr, waiter.heard_at = members, who.home_addr, now
            if placed:
                waiter.rests_until = 0.0  # there was room where it was told of some
            self.tried(())
        self.partition.refused()
        if self._could(waiter):
            self._missed_at = min(self._missed_at, max(now, waiter.rests_until))
        if len(self.waiters) > MOST_WAITING:
            last = max(self.waiters.values(), key=lambda w: (-w.priority, w.since, w.key))
            self.leaves(last.key)

    def outdated(self, key: str, who: Standing) -> None:
        """Nodes obey a newer home than the one that has asked: its place goes, that of the newer one stays."""
        waiter = self.waiters.get(key)
        if waiter is None:
            return
        if waiter.home_addr == who.home_addr:
            self.leaves(key)
            return
        waiter.asking, waiter.rests_until = False, 0.0  # it had not come itself
        self.tried(())

    def leaves(self, key: str) -> None:
        """It was placed, or nobody wants it any more."""
        waiter = self.waiters.pop(key, None)
        if waiter is not None:
            self._release(waiter)

    def yielded(self, ask: AskRoom, count: int, now: float) -> None:
        """So many go: the rest of that revision can't be spared."""
        self.preempted_total += count
        if count < ask.count:
            self._spared[ask.victim] = now + SPARED_S
            for waiter in self.waiters.values():
                waiter.planned_at = float("-inf")  # others are to be found
        stay, until = self._going.get((ask.victim, ask.node), (0, now))
        self._going[ask.victim, ask.node] = (stay + ask.count - count, until)

    # --- a pass

    def give(self, now: float) -> list[TellRoom | AskRoom]:
        """Room to those who are next, in order; call it when nodes have changed, and now and then."""
        due, self._due = self._due, {}
        booked = [w for key in due if (w := self.waiters.get(key)) is not None and w.told_at is not None]
        for waiter in booked:
            waiter.told_at = now  # nobody is late for what it is only told of now
        self._lapse(now)
        out = [*(due[w.key] for w in booked if w.told_at is not None), *self._pass(now)]
        self.told_total += sum(isinstance(i, TellRoom) for i in out)
        return out

    def _pass(self, now: float, asking: Collection[str] = ()) -> list[TellRoom | AskRoom]:
        if not self.waiters:
            return []
        waiting = [
            w
            for w in self.waiters.values()
            if w.told_at is None and (w.key in asking or not (w.asking or w.late or now < w.rests_until))
        ]
        for waiter in waiting:
            self._release(waiter)
        shares = Shares(self.partition.candidates(), self.weights)
        for waiter in self.waiters.values():
            for _, _, revision in waiter.bookings:
                shares.add(waiter.namespace, revision.needs)
        out: list[TellRoom | AskRoom] = []
        full: list[Revision] = []
        full_for: set[tuple[object, ...]] = set()  # gangs: room only shrinks in a pass
        kept = 0
        for waiter in in_turn(waiting, shares, now):
            gang = tuple((m.needs, m.node_selector) for m in waiter.members) if waiter.gang else ()
            if gang not in full_for and not any(_harder(waiter, than) for than in full):
                places = self._places(waiter)
                if places:
                    for revision, _ in places:
                        shares.add(waiter.namespace, revision.needs)
                    waiter.told_at, waiter.kept, waiter.room_is_made = now, (), False
                    if waiter.key not in asking:
                        keys = tuple(dict.fromkeys(m.key for m in waiter.members))
                        out.append(TellRoom(waiter.key, waiter.home_addr, keys))
                    continue
                if waiter.gang:
                    full_for.add(gang)
                elif len(full) < MOST_COMPARED:
                    full.append(waiter.members[0])
            if kept < MOST_KEPT and not waiter.asking and self._keep(waiter, now, out, plans=not asking):
                kept += 1
        self.partition.given()
        resting = (w.rests_until for w in self.waiters.values() if now < w.rests_until)
        self._missed_at = min(resting, default=float("inf"))
        return out

    def _could(self, waiter: Waiter) -> bool:
        """Each of its members would find a node now; of a gang, not all of them together perhaps."""
        best = self.partition.ranking.best
        return all(best(r) for r in (waiter.members if waiter.gang else waiter.members[:1]))

    def _places(self, waiter: Waiter) -> list[tuple[Revision, NodeID]]:
        """Books what fits now: all of a gang or nothing, of others as many as do."""
        if waiter.gang:
            candidates = self.partition.candidates() if self._could(waiter) else ()
            nodes = choose_gang(waiter.members, candidates) if candidates else None
            places = list(zip(waiter.members, nodes, strict=True)) if nodes else []
            for revision, node in places:
                self._book(waiter, revision, node)
            return places
        places = []
        for revision in waiter.members:
            best = self.partition.ranking.best(revision)
            if best is None:
                break
            places.append((revision, best.status.node))
            self._book(waiter, revision, best.status.node)
        return places

    def _keep(self, waiter: Waiter, now: float, out: list[TellRoom | AskRoom], *, plans: bool) -> bool:
        """Keeps room that is to come, if it may have that; asks victims to make it, where it `plans`."""
        aged = now - waiter.since >= AGED_S
        if not (waiter.preempts or aged):
            return False
        if plans and now - waiter.planned_at >= PLAN_AGAIN_S:
            waiter.planned_at = now
            going = {at: stay for at, (stay, _) in self._going.items()}
            members = waiter.members if waiter.gang else waiter.members[:MOST_MADE]
            nodes = rooms(self.partition.candidates(), going)
            planned = plan if waiter.gang else plan_each
            wanted = planned(members, nodes, self._spared) if waiter.preempts else None
            waiter.room_is_made = wanted is not None
            if wanted is not None:
                waiter.kept = tuple(zip(members, wanted.nodes, strict=False))
                out.extend(self._ask(waiter, victims, now) for victims in wanted.victims)
            elif aged:
                waiter.kept = keep(
                    members if waiter.gang else members[:1], rooms(self.partition.candidates(), going)
                )
            else:
                waiter.kept = ()
        for revision, node in waiter.kept:
            self._book(waiter, revision, node)
        return bool(waiter.kept)

    def _ask(self, waiter: Waiter, victims: Victims, now: float) -> AskRoom:
        holding, node, count = victims
        stay, _ = self._going.get((holding.revision, node), (holding.instances, 0.0))
        self._going[holding.revision, node] = (stay - count, now + GOING_S)
        names = " and ".join(dict.fromkeys(m.key for m in waiter.members))
        reason = f"preempted by {names} (priority {waiter.priority} over {holding.priority})"
        return AskRoom(holding.revision, holding.home_key, node, count, waiter.priority, reason)

    # --- inside

    def _book(self, waiter: Waiter, revision: Revision, node: NodeID) -> None:
        booking = InstanceID(f"{BOOKED}{waiter.key}/{len(waiter.bookings)}")
        waiter.bookings.append((booking, node, revision))
        self.partition.sent(booking, node, revision.needs)

    def _release(self, waiter: Waiter) -> None:
        for booking, _, _ in waiter.bookings:
            self.partition.answered(booking)
        waiter.bookings.clear()
        waiter.told_at = None

    def _lapse(self, now: float) -> None:
        for waiter in list(self.waiters.values()):
            if now - waiter.heard_at >= HEARD_S:
                self.leaves(waiter.key)
            elif waiter.told_at is not None and now - waiter.told_at >= BOOKED_S:
                self._release(waiter)
                waiter.late = True
        self._spared = {key: until for key, until in self._spared.items() if now < until}
        self._going = {at: (stay, until) for at, (stay, until) in self._going.items() if now < until}

    def describe(self, now: float) -> list[dict[str, object]]:
        """For people, in the order in which they stand."""
        shares = Shares(self.partition.candidates(), self.weights)
        return [
            {
                "waiter": waiter.key,
                "instances": len(waiter.members),
                "priority": waiter.priority,
                "waited_s": round(now - waiter.since, 1),
                "share": round(shares.of(waiter.namespace), 3),
                "kept_on": sorted({node for _, node, _ in waiter.bookings}),
                "preempting": waiter.room_is_made,
            }
            for waiter in in_turn(list(self.waiters.values()), shares, now)
        ]


def key_of(revision: Revision, gang: bool) -> str:
    """Who waits: a revision, or the gang that its group wakes with."""
    return f"gang:{revision.home_key}" if gang else revision.key


def _harder(waiter: Waiter, than: Revision) -> bool:
    """What didn't find room would find it sooner."""
    needs: Resources = than.needs
    return any(m.node_selector == than.node_selector and needs.fits(m.needs) for m in waiter.members)
