"""A shard's admission of one revision: which instance takes the next request, and which requests are held.

It decides in O(1) from the slots that home has granted: the usable instance with the fewest requests in flight
from here (ties: the one that has been there longest). Without one, a request is held in order of arrival within
the bounds of Hold. It never asks for slots (shard.py does), never touches a request, and reads no clock.
In Knative: pkg/activator/net/throttler.go with the breaker of pkg/queue.

Hot dialect: slots, int constants, no exception, no allocation for a request that isn't held.
Between two calls nothing is held while an instance is usable.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from kserve_ext.core.dispatch.facts import UNLIMITED
from kserve_ext.core.facts import Hold
from kserve_ext.core.ids import InstanceID

HELD: Final = 0
TOO_MANY: Final = 1  # hold-requests are held
TOO_LARGE: Final = 2  # hold-bytes are held

LEAST_BLOCK_S: Final = 0.1
MOST_BLOCK_S: Final = 2.0
MOST_EARLY: Final = 100


class Holdable(Protocol):
    @property
    def held_bytes(self) -> int: ...


R = TypeVar("R", bound=Holdable)
Slots = tuple[tuple[InstanceID, int], ...]


class Tracker:
    """One instance as seen from here."""

    __slots__ = ("addr", "blocked_until", "blocks", "id", "in_flight", "peak", "ready_at", "slots")

    def __init__(self, instance: InstanceID) -> None:
        self.id = instance
        self.addr = ""
        self.slots = 0  # UNLIMITED, or how many requests may be in flight from here
        self.in_flight = 0
        self.peak = 0  # most in flight since idle slots were last given back
        self.ready_at = 0.0
        self.blocked_until = 0.0  # it refused a connection: not used until then
        self.blocks = 0  # in a row


class Throttler(Generic[R]):
    __slots__ = (
        "_again",
        "_area",
        "_area_at",
        "_blocked",
        "_by_load",
        "_early",
        "_held",
        "_low",
        "_told",
        "arrived",
        "completed",
        "held_bytes",
        "hold",
        "in_flight",
        "promised",
        "trackers",
        "valid_until",
    )

    def __init__(self, hold: Hold, now: float) -> None:
        self.hold = hold
        self.trackers: dict[InstanceID, Tracker] = {}
        #: limited slots of instances that start: they are slots as soon as a node says that these are ready
        self.promised: dict[InstanceID, int] = {}
        #: where instances are that were ready before anything of them was promised: the word of home is on its way
        self._early: dict[InstanceID, str] = {}
        self.in_flight = 0
        self.held_bytes = 0
        self.arrived = 0
        self.completed = 0
        #: limited slots may be used before this time only
        self.valid_until = 0.0
        #: held requests and until when, in order of arrival; deadlines only rise
        self._held: OrderedDict[R, float] = OrderedDict()
        #: those that an instance gave back before answering; they go first
        self._again: OrderedDict[R, float] = OrderedDict()
        #: usable instances by requests in flight from here; all and only those that may take one
        self._by_load: list[dict[Tracker, None]] = [{}]
        #: no instance is usable with fewer in flight
        self._low = 0
        self._blocked: set[Tracker] = set()
        #: `uses` and `leases`, made when asked for; None as soon as they are to be made anew
        self._told: tuple[Slots, Slots] | None = None
        self._area = 0.0  # integral of held + in flight
        self._area_at = now

    # --- requests

    def submit(self, request: R, now: float) -> Tracker | int:
        """The instance it goes to, or HELD, TOO_MANY, TOO_LARGE."""
        self._integrate(now)
        self.arrived += 1
        tracker = self._pick(now)
        if tracker is not None:
            return self._take(tracker)
        if len(self._held) + len(self._again) >= self.hold.requests:
            return TOO_MANY
        if self.held_bytes + request.held_bytes > self.hold.bytes:
            return TOO_LARGE
        self._held[request] = now + self.hold.seconds
        self.held_bytes += request.held_bytes
        return HELD

    def release(self, instance: InstanceID, now: float) -> R | None:
        """A request there has ended; the request that takes its slot, if one does."""
        self._integrate(now)
        self.completed += 1
        tracker = self.trackers[instance]
        tracker.blocks = 0
        self._leave(tracker)
        if (self._held or self._again) and self._usable(tracker) and self._in_time(tracker, now):
            self._take(tracker)
            return self._next()
        return None

    def put_back(self, request: R, instance: InstanceID, now: float) -> None:
        """The instance broke off before answering: the request is held in front of all others."""
        self._integrate(now)
        self.block(instance, now)
        self._again[request] = now + self.hold.seconds
        self.held_bytes += request.held_bytes

    def block(self, instance: InstanceID, now: float) -> None:
        """Ends a request there, and doesn't use the instance for a while that doubles each time."""
        tracker = self.trackers[instance]
        self._leave(tracker)
        if instance in self.trackers and now >= tracker.blocked_until:
            self._close(tracker)
            tracker.blocked_until = now + min(MOST_BLOCK_S, LEAST_BLOCK_S * 2**tracker.blocks)
            tracker.blocks = min(tracker.blocks + 1, 10)
            self._blocked.add(tracker)

    def cancel(self, request: R, now: float) -> bool:
        """Forgets a held request; False if it isn't held."""
        self._integrate(now)
        if self._held.pop(request, None) is None and self._again.pop(request, None) is None:
            return False
        self.held_bytes -= request.held_bytes
        return True

    def drain(self, now: float) -> Iterator[tuple[R, Tracker]]:
        """Held requests that can go, first come first served; carry each out before taking the next."""
        self._integrate(now)
        while self._held or self._again:
            tracker = self._pick(now)
            if tracker is None:
                return
            self._take(tracker)
            yield self._next(), tracker

    def expired(self, now: float) -> list[R]:
        """Takes out those held for too long; and lets blocked instances be used again."""
        self._integrate(now)
        for tracker in [t for t in self._blocked if t.blocked_until <= now]:
            self._blocked.discard(tracker)
            self._open(tracker)
        late = [request for request, until in self._again.items() if until <= now]
        for request, until in self._held.items():
            if until > now:
                break
            late.append(request)
        for request in late:
            self.cancel(request, now)
        return late

    def all_held(self) -> list[R]:
        return [*self._again, *self._held]

    # --- slots

    def grant(self, slots: Iterable[tuple[InstanceID, str, int, float]], now: float) -> None:
        """The complete set: instance, address, slots, time at which it was ready. Then drain.

        Without an address it is not ready, as far as home knew; a node may have said so since.
        """
        kept: set[InstanceID] = set()
        self.promised = {}
        for instance, addr, count, ready_at in slots:
            tracker = self.trackers.get(instance)
            if tracker is None:
                early = self._early.pop(instance, "")
                if not (addr or early):
                    self.promised[instance] = count
                    continue
                tracker = self.trackers[instance] = Tracker(instance)
                tracker.addr, tracker.ready_at = early, ready_at if addr else now
            elif tracker.slots == count and (tracker.addr == addr or not addr):
                kept.add(instance)
                continue  # as most of them in most Grants
            kept.add(instance)
            self._told = None
            self._close(tracker)
            if count > tracker.slots:  # new ones have their time; what is only said again was given it
                tracker.peak = max(tracker.peak, count)
            tracker.addr, tracker.slots = addr or tracker.addr, count
            self._open(tracker)
        if len(kept) < len(self.trackers):
            for instance in [i for i in self.trackers if i not in kept]:
                self._withdraw(self.trackers[instance])

    def announce(self, instance: InstanceID, addr: str, now: float) -> None:
        """An unlimited instance that its node says is ready."""
        if instance not in self.trackers:
            tracker = self.trackers[instance] = Tracker(instance)
            tracker.addr, tracker.slots, tracker.ready_at = addr, UNLIMITED, now
            self._told = None
            self._open(tracker)

    def keep_promise(self, instance: InstanceID, addr: str, now: float) -> None:
        """Its node says that it is ready: what was promised of it may be used. Then drain."""
        count = self.promised.pop(instance, 0)
        if not count and instance not in self.trackers:
            self._early[instance] = addr
            if len(self._early) > MOST_EARLY:
                del self._early[next(iter(self._early))]
        elif count and now < self.valid_until:
            tracker = self.trackers[instance] = Tracker(instance)
            tracker.addr, tracker.slots, tracker.peak, tracker.ready_at = addr, count, count, now
            self._told = None
            self._open(tracker)

    def withdraw(self, instance: InstanceID) -> None:
        """Its node says that it is gone: nothing new goes there."""
        self.promised.pop(instance, None)
        self._early.pop(instance, None)
        tracker = self.trackers.get(instance)
        if tracker is not None:
            self._withdraw(tracker)

    def give_idle(self) -> bool:
        """Gives back limited slots that weren't used since the last call; True if there were any."""
        given = False
        for tracker in list(self.trackers.values()):
            if tracker.slots > tracker.peak:
                given = True
                self._close(tracker)
                tracker.slots = tracker.peak
                self._told = None
                self._open(tracker)
                self._forget_unused(tracker)
            tracker.peak = tracker.in_flight
        return given

    def lapse(self, now: float) -> None:
        """Limited slots whose time is over are lost for good: others may have them, whatever is answered later."""
        if now >= self.valid_until:
            self.promised = {}
            for tracker in [t for t in self.trackers.values() if t.slots > 0]:
                self._withdraw(tracker)

    def forget_all(self) -> None:
        """Gives everything back; requests in flight go on."""
        self.promised = {}
        self._early.clear()
        for tracker in list(self.trackers.values()):
            self._withdraw(tracker)

    # --- account

    @property
    def held(self) -> int:
        return len(self._held) + len(self._again)

    @property
    def uses(self) -> Slots:
        """Requests in flight, by instance."""
        return (self._told or self._tell())[0]

    @property
    def leases(self) -> Slots:
        """Limited slots that count as taken: those granted, still used after being taken back, or promised."""
        return (*self.granted, *self.promised.items()) if self.promised else self.granted

    @property
    def granted(self) -> Slots:
        """The same without what is only promised."""
        return (self._told or self._tell())[1]

    def waits_us(self, now: float, most: int) -> tuple[int, ...]:
        """How long held requests have waited, in microseconds: as many as `most`, the oldest first."""
        if not (self._held or self._again):
            return ()
        arrived = now + self.hold.seconds  # less its deadline: since it arrived, or was given back
        first = [*islice(self._again.values(), most), *islice(self._held.values(), most)]
        return tuple(round((arrived - until) * 1e6) for until in sorted(first)[:most])

    def prefers(self, telling: bool) -> tuple[tuple[InstanceID, int], ...]:
        """Of which instances slots are asked for, and how many. `telling`: heard() follows the answer to it."""
        return ()

    def heard(self) -> None:
        """Home has answered what was told to it, and its Grant was obeyed: then drain."""

    def area(self, now: float) -> float:
        """Integral of held + in flight since the beginning."""
        self._integrate(now)
        return self._area

    def check(self, now: float) -> None:
        """Invariants, for tests."""
        usable = [t for level in self._by_load for t in level]
        assert set(usable) == {t for t in self.trackers.values() if self._usable(t)}
        assert all(t in self._by_load[t.in_flight] for t in usable)
        assert all(not level for level in self._by_load[: self._low])
        assert self.in_flight == sum(t.in_flight for t in self.trackers.values())
        assert self.held_bytes == sum(r.held_bytes for r in self.all_held())
        assert all(t.slots or t.in_flight for t in self.trackers.values())
        assert self.promised.keys().isdisjoint(self.trackers)
        self.check_told()
        if self.held:
            assert not any(self._in_time(t, now) for t in usable), "held although an instance is usable"

    def check_told(self) -> None:
        told = self._told
        assert told is None or told == self._tell(), "what is told of slots is not what there is"

    # --- inside

    def _pick(self, now: float) -> Tracker | None:
        by_load = self._by_load
        low = self._low
        while low < len(by_load):
            if by_load[low]:
                tracker = next(iter(by_load[low]))
                self._low = low
                return tracker if self._in_time(tracker, now) else None
            low += 1
        self._low = low
        return None

    def _in_time(self, tracker: Tracker, now: float) -> bool:
        return tracker.slots == UNLIMITED or now < self.valid_until

    def _usable(self, tracker: Tracker) -> bool:
        slots = tracker.slots
        return (slots == UNLIMITED or tracker.in_flight < slots) and tracker not in self._blocked

    def _take(self, tracker: Tracker) -> Tracker:
        self._told = None
        self._close(tracker)
        tracker.in_flight += 1
        if tracker.in_flight > tracker.peak:
            tracker.peak = tracker.in_flight
        self.in_flight += 1
        self._open(tracker)
        return tracker

    def _leave(self, tracker: Tracker) -> None:
        self._told = None
        self._close(tracker)
        tracker.in_flight -= 1
        self.in_flight -= 1
        self._open(tracker)
        self._forget_unused(tracker)

    def _next(self) -> R:
        request, _ = (self._again or self._held).popitem(last=False)
        self.held_bytes -= request.held_bytes
        return request

    def _open(self, tracker: Tracker) -> None:
        if self._usable(tracker):
            load = tracker.in_flight
            while len(self._by_load) <= load:
                self._by_load.append({})
            self._by_load[load][tracker] = None
            if load < self._low:
                self._low = load

    def _close(self, tracker: Tracker) -> None:
        if tracker.in_flight < len(self._by_load):
            self._by_load[tracker.in_flight].pop(tracker, None)

    def _withdraw(self, tracker: Tracker) -> None:
        self._told = None
        self._close(tracker)
        tracker.slots = 0
        self._forget_unused(tracker)

    def _forget_unused(self, tracker: Tracker) -> None:
        if not tracker.slots and not tracker.in_flight:
            self.trackers.pop(tracker.id, None)
            self._blocked.discard(tracker)

    def _tell(self) -> tuple[Slots, Slots]:
        uses: list[tuple[InstanceID, int]] = []
        leases: list[tuple[InstanceID, int]] = []
        for tracker in self.trackers.values():
            in_flight, slots = tracker.in_flight, tracker.slots
            if in_flight:
                uses.append((tracker.id, in_flight))
            if slots != UNLIMITED and (slots or in_flight):
                leases.append((tracker.id, slots if slots > in_flight else in_flight))
        self._told = told = tuple(uses), tuple(leases)
        return told

    def _integrate(self, now: float) -> None:
        self._area += (self.in_flight + len(self._held) + len(self._again)) * (now - self._area_at)
        self._area_at = now
