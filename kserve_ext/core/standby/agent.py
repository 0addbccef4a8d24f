"""The node agent's account of its slots: who has which, and what has to go out to slots and activators.

The slots are the truth: what one says replaces what is believed here, but for an order under way. A slot has one
revision; the first who takes it has it, and asking again changes nothing. Former holders of a bucket are refused
(fence.py). What serves is told to the activators that were named, and taken back as soon as it doesn't. A slot with
a revision that no autoscaler has heard of for UNCLAIMED_S is made free again, since nobody can have adopted it. One
that had it before this agent began may be adopted, and is left alone.

Reads no clock, sends nothing: every verb gives back what has to go out (Effect), in order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Final

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.effects import Drop, Effect, EmptySlot, News, StartSlot, Verdict
from kserve_ext.core.standby.facts import Assignment, Slot, SlotState, Started
from kserve_ext.core.standby.fence import Fence
from kserve_ext.core.standby.idle_time import IdleTime

#: So long a slot with a revision may be unknown to every autoscaler.
UNCLAIMED_S: Final = 60.0
#: So long a slot has to answer an order before what it said last counts again. It does at once where its machine
#: isn't overloaded, and an order is lost only with the connection.
ORDER_S: Final = 30.0
#: Characters of a slot's reason that are passed on: it goes to every autoscaler with each change on the node.
MOST_REASON: Final = 1000
#: Likewise of the steps of its start.
MOST_STEPS: Final = 12
MOST_STEP: Final = 32
MOST_MS: Final = 1 << 40
#: Pods whose pool is remembered. It is the slot's word, and a figure of ours: a pod has one for its life.
KEEP_PODS: Final = 4096
HTTP1_PORT: Final = 8012
HTTP2_PORT: Final = 8013
#: States in which a slot has a revision.
BUSY: Final[frozenset[SlotState]] = frozenset(("starting", "serving", "draining"))

_BEFORE_START: Final[frozenset[SlotState]] = frozenset(("ready",))
_BEFORE_EMPTY: Final[frozenset[SlotState]] = frozenset(("starting", "serving"))


class _Life:
    """One slot that is connected."""

    __slots__ = (
        "changed_at",
        "claimable",
        "late",
        "link",
        "ordered_until",
        "said",
        "slot",
        "taken",
        "tell",
        "told",
    )

    def __init__(self, link: int, slot: Slot) -> None:
        self.link = link
        self.slot = slot
        #: What it said last, while an order is under way and `slot` shows what was ordered.
        self.said = slot
        self.ordered_until = 0.0
        #: States that it may have said before it has read that order.
        self.late: frozenset[SlotState] = frozenset()
        #: The change that brought it to its revision; an autoscaler that has heard of it knows the slot.
        self.changed_at = 0
        #: Taken through this agent: then nobody knows it who hasn't heard of it here.
        self.claimable = False
        self.taken: Assignment | None = None
        self.tell: tuple[str, ...] = ()
        #: The news that activators have, while they believe that it serves.
        self.told: News | None = None


class SlotAccount:
    def __init__(self) -> None:
        #: Rises with every change of any slot.
        self.changes = 0
        #: Why no slot of this node is given to a revision; "" = they are.
        self.closed = ""
        self._lives: dict[str, _Life] = {}  # by pod
        self._pods: dict[int, str] = {}  # by link
        self._pools: OrderedDict[str, str] = OrderedDict()  # by the pod's uid
        self._heard = 0  # the change up to which some autoscaler knows everything
        self._fence = Fence()
        self._idle = IdleTime()

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(life.slot for _, life in sorted(self._lives.items()))

    def counts(self) -> dict[tuple[str, SlotState], int]:
        """Slots by pool and state."""
        found: dict[tuple[str, SlotState], int] = {}
        for life in self._lives.values():
            at = life.slot.pool, life.slot.state
            found[at] = found.get(at, 0) + 1
        return found

    def idle_by_pool(self, now: float) -> dict[str, float]:
        """GPU-seconds that slots have stood by until now."""
        return self._idle.until(now, self._each())

    # --- slots

    def connected(self, link: int, slot: Slot, now: float) -> list[Effect]:
        """A slot that has proven which pod it is; what state it is in, it says next."""
        try:
            ip_address(slot.addr)
        except ValueError:
            return [Drop(link, f"addr {slot.addr!r} is no IP address: send the pod's own (status.podIP)")]
        pool = self._pools.get(slot.uid, slot.pool)
        if pool != slot.pool:
            return [Drop(link, f"pod {slot.pod} is of pool {pool}, not {slot.pool}: say what its label says")]
        before = self._lives.get(slot.pod)
        effects: list[Effect] = []
        if before is not None and before.slot.uid == slot.uid:
            if before.slot.incarnation > slot.incarnation:
                return [Drop(link, f"a newer process of pod {slot.pod} is connected: end this one")]
            effects.append(Drop(before.link, "this pod has connected again"))
            del self._pods[before.link]
            if before.slot.incarnation == slot.incarnation:  # the same process on another connection
                before.link, before.ordered_until = link, 0.0
                self._pods[link] = slot.pod
                return effects
        elif before is not None:
            effects.append(Drop(before.link, f"another pod is called {slot.pod} now"))
        if before is not None:
            effects += self._end(before, "its process has ended", now)
        self._pools[slot.uid] = slot.pool
        self._pools.move_to_end(slot.uid)
        if len(self._pools) > KEEP_PODS:
            self._pools.popitem(last=False)
        life = _Life(link, slot._replace(state="warming", revision=RevisionKey(""), since=now))
        self._lives[slot.pod] = life
        self._pods[link] = slot.pod
        self._changed()
        return effects

    def said(
        self,
        link: int,
        state: SlotState,
        revision: RevisionKey,
        reason: str,
        now: float,
        started: Started | None = None,
        asleep: tuple[str, ...] = (),
    ) -> list[Effect]:
        """A slot says what it does."""
        life = self._of(link)
        if life is None:
            return []
        why = ""
        if state in BUSY and not revision:
            why = f"state {state} without a revision: name it"
        elif revision and revision.partition("/")[0] != life.slot.pod.partition("/")[0]:
            # Else it would count as one of another tenant's pods, whose requests would wait for it.
            why = f"revision {revision} is not of the namespace of pod {life.slot.pod}"
        if why:
            effects = self._end(life, why, now)
            self._changed()
            return [*effects, Drop(link, why)]
        reason = reason[:MOST_REASON]
        if state not in BUSY and state != "failed":
            revision = RevisionKey("")
        if asleep != life.slot.asleep:
            life.slot = life.slot._replace(asleep=asleep)
            self._changed()
        how = _bounded(started) if started is not None and state == "serving" else None
        life.said = life.said._replace(state=state, revision=revision, reason=reason, started=how)
        if life.ordered_until and state in life.late:
            return []
        life.ordered_until = 0.0
        return self._become(life, state, revision, reason, now, how)

    def lost(self, link: int, now: float) -> list[Effect]:
        """The connection is over, and with it the slot."""
        life = self._of(link)
        if life is None:
            return []
        effects = self._end(life, "its process has ended", now)
        self._changed()
        return effects

    # --- autoscalers

    def heard(self, change: int) -> None:
        """An autoscaler knows all slots as they were after this change."""
        self._heard = max(self._heard, min(change, self.changes))

    def take(
        self, pod: str, uid: str, assignment: Assignment, tell: Iterable[str], term: int, now: float
    ) -> tuple[Verdict, list[Effect]]:
        life, verdict = self._asked(pod, uid, assignment.revision, term, now)
        if life is None:
            return verdict, []
        slot = life.slot
        if assignment.revision.partition("/")[0] != pod.partition("/")[0]:
            return Verdict(f"pod {pod} serves revisions of its own namespace only", slot=slot), []
        if slot.revision == assignment.revision and slot.state in ("starting", "serving"):
            life.taken = assignment
            return Verdict(slot=slot), self._tell_also(life, tuple(tell))
        if self.closed:
            return Verdict(f"{self.closed}; take a slot of another node", slot=slot), []
        if slot.state != "ready":
            of = f" {slot.revision}" if slot.revision else ""
            why = f": {slot.reason}" if slot.reason else ""
            return Verdict(f"pod {pod} is {slot.state}{of}{why}; take another slot", slot=slot), []
        life.taken, life.tell, life.claimable = assignment, tuple(tell), True
        life.said, life.ordered_until, life.late = slot, now + ORDER_S, _BEFORE_START
        effects = self._become(life, "starting", assignment.revision, "", now)
        return Verdict(slot=life.slot), [*effects, StartSlot(life.link, assignment)]

    def free(
        self, pod: str, uid: str, revision: RevisionKey, term: int, now: float
    ) -> tuple[Verdict, list[Effect]]:
        life, verdict = self._asked(pod, uid, revision, term, now)
        if life is None:
            return verdict, []
        slot = life.slot
        if slot.revision != revision:
            has = f"has {slot.revision}" if slot.revision else f"is {slot.state} and has no revision"
            return Verdict(f"pod {pod} {has}; nothing was done", slot=slot), []
        if slot.state == "draining":
            return Verdict(slot=slot), []
        return self._empty(life, "its revision has given it back", now)

    # --- time

    def tick(self, now: float) -> list[Effect]:
        """Orders that nobody answered, slots that nobody knows."""
        effects: list[Effect] = []
        for life in list(self._lives.values()):
            if life.ordered_until and now >= life.ordered_until:
                life.ordered_until = 0.0
                said = life.said
                effects += self._become(life, said.state, said.revision, said.reason, now, said.started)
            elif self._unclaimed(life) and now >= life.slot.since + UNCLAIMED_S:
                effects += self._empty(life, "no autoscaler has heard of it", now)[1]
        return effects

    def due(self) -> float:
        """When `tick` has something to do; infinity: not before something else happens."""
        times = [life.ordered_until for life in self._lives.values() if life.ordered_until]
        times += [life.slot.since + UNCLAIMED_S for life in self._lives.values() if self._unclaimed(life)]
        return min(times, default=float("inf"))

    # --- inside

    def _of(self, link: int) -> _Life | None:
        pod = self._pods.get(link)
        return None if pod is None else self._lives[pod]

    def _each(self) -> Iterator[Slot]:
        return (life.slot for life in self._lives.values())

    def _changed(self) -> None:
        self.changes += 1

    def _unclaimed(self, life: _Life) -> bool:
        return life.claimable and life.slot.state in ("starting", "serving") and life.changed_at > self._heard

    def _asked(
        self, pod: str, uid: str, revision: RevisionKey, term: int, now: float
    ) -> tuple[_Life | None, Verdict]:
        """Whom an order is for, unless it is refused."""
        life = self._lives.get(pod)
        slot = life.slot if life is not None else None
        newer = self._fence.before(revision, term, now)
        if newer is not None:
            why = f"term {term} of {revision} is over: {newer} has been obeyed, another autoscaler has it now"
            return None, Verdict(why, stale=True, slot=slot)
        if life is None or slot is None:
            why = f"pod {pod} has no slot here: it has ended, or hasn't connected yet"
            return None, Verdict(why)
        if slot.uid != uid:
            return None, Verdict(f"pod {pod} is another one now (uid {slot.uid}, not {uid})", slot=slot)
        self._fence.obey(revision, term, now)
        return life, Verdict()

    def _become(
        self,
        life: _Life,
        state: SlotState,
        revision: RevisionKey,
        reason: str,
        now: float,
        started: Started | None = None,
    ) -> list[Effect]:
        slot = life.slot
        if (slot.state, slot.revision, slot.reason) == (state, revision, reason):
            return []
        if (slot.state, slot.revision) != (state, revision):
            self._idle.count(slot, now, self._each())
            slot = slot._replace(since=now)
        life.slot = slot._replace(state=state, revision=revision, reason=reason, started=started)
        self._changed()
        life.changed_at = self.changes
        effects = self._take_back(life, reason or f"it is {state}") if not self._believed(life) else []
        if life.taken is not None and life.taken.revision != revision:
            life.taken, life.tell, life.claimable = None, (), False
        if state == "serving" and life.told is None and life.taken is not None and life.tell:
            effects.append(self._announce(life, life.tell))
        return effects

    def _believed(self, life: _Life) -> bool:
        """What activators believe of it is so."""
        told = life.told
        return told is None or (life.slot.state == "serving" and life.slot.revision == told.revision)

    def _announce(self, life: _Life, to: tuple[str, ...]) -> News:
        slot, taken = life.slot, life.taken
        assert taken is not None
        port = HTTP2_PORT if taken.http2 else HTTP1_PORT
        host = f"[{slot.addr}]" if ":" in slot.addr else slot.addr
        news = News(to, slot.revision, taken.instance, f"{host}:{port}", slot.incarnation, serves=True)
        life.told = news._replace(to=life.tell)
        return news

    def _tell_also(self, life: _Life, tell: tuple[str, ...]) -> list[Effect]:
        """Activators that haven't heard of it yet; one that was asked to tell before is not forgotten."""
        new = tuple(addr for addr in tell if addr not in life.tell)
        life.tell += new
        if life.slot.state == "serving" and new:
            return [self._announce(life, new)]
        return []

    def _take_back(self, life: _Life, reason: str) -> list[Effect]:
        told, life.told = life.told, None
        return [told._replace(serves=False, reason=reason)] if told is not None else []

    def _empty(self, life: _Life, reason: str, now: float) -> tuple[Verdict, list[Effect]]:
        revision = life.slot.revision
        life.said, life.ordered_until, life.late = life.slot, now + ORDER_S, _BEFORE_EMPTY
        effects = self._become(life, "draining", revision, reason, now)
        return Verdict(slot=life.slot), [*effects, EmptySlot(life.link, revision)]

    def _end(self, life: _Life, reason: str, now: float) -> list[Effect]:
        self._idle.count(life.slot, now, self._each())
        self._lives.pop(life.slot.pod, None)
        self._pods.pop(life.link, None)
        return self._take_back(life, reason)

    def check(self) -> None:
        """Invariants, for tests."""
        assert {life.link: pod for pod, life in self._lives.items()} == self._pods
        for pod, life in self._lives.items():
            slot = life.slot
            assert slot.pod == pod
            assert bool(slot.revision) == (slot.state in BUSY) or slot.state == "failed"
            if life.told is not None:
                assert slot.state == "serving"
                assert slot.revision == life.told.revision


def _bounded(started: Started) -> Started:
    steps = tuple((name[:MOST_STEP], min(max(0, ms), MOST_MS)) for name, ms in started.steps[:MOST_STEPS])
    return Started(started.level, started.why[:MOST_REASON], steps)
