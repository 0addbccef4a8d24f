"""A throttler whose requests are not indifferent to where they go: affinity, or the choice of a prefill instance.

A chooser says which instance is best for a request. When no slot of that one is here but others have some, home is
asked for it and the request is held until home has answered, for ASK_S at most; then the best of those with a slot
takes it. Requests keep their order among those that would take the same instance. It costs O(instances) a request;
revisions without a preference keep the plain throttler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

from kserve_ext.core.dispatch.facts import UNLIMITED
from kserve_ext.core.dispatch.throttler import HELD, TOO_LARGE, TOO_MANY, R, Throttler, Tracker
from kserve_ext.core.facts import Hold, Revision
from kserve_ext.core.ids import InstanceID

ASK_S: Final = 0.25
FULL_S: Final = 0.25  # home had no slot of an instance: it is not asked for one again so soon

C = TypeVar("C", contravariant=True)


class Chosen(NamedTuple):
    tracker: Tracker
    why: str = ""  # for a person; "" = nothing spoke for it


class Chooser(Protocol[C]):
    def choose(self, request: C, there: Sequence[Tracker], now: float) -> Chosen | None:
        """The best of these; None: it can go to none of them."""

    def chosen(self, request: C, chosen: Chosen, now: float) -> None:
        """It goes there."""


@dataclass(slots=True)
class _Ask:
    instance: InstanceID
    until: float
    told: bool = False  # a Demand that says so is under way


class ChoosingThrottler(Throttler[R]):
    __slots__ = ("_asks", "_chooser", "_full_until", "_listed")

    def __init__(self, hold: Hold, now: float, chooser: Chooser[R]) -> None:
        super().__init__(hold, now)
        self._chooser = chooser
        #: instances that home has named; they stay known without a slot here
        self._listed: set[InstanceID] = set()
        self._asks: dict[R, _Ask] = {}
        self._full_until: dict[InstanceID, float] = {}

    # --- requests

    def submit(self, request: R, now: float) -> Tracker | int:
        self._integrate(now)
        self.arrived += 1
        chosen = self._choose(request, now)
        if chosen is not None:
            return self._send(request, chosen, now)
        outcome = HELD
        if self.held >= self.hold.requests:
            outcome = TOO_MANY
        elif self.held_bytes + request.held_bytes > self.hold.bytes:
            outcome = TOO_LARGE
        if outcome is HELD:
            self._held[request] = now + self.hold.seconds
            self.held_bytes += request.held_bytes
        else:
            self._asks.pop(request, None)
        return outcome

    def release(self, instance: InstanceID, now: float) -> R | None:
        self._integrate(now)
        self.completed += 1
        tracker = self.trackers[instance]
        tracker.blocks = 0
        self._leave(tracker)
        if self.held and self._usable(tracker) and self._in_time(tracker, now):
            for request in self.all_held():
                chosen = self._choose(request, now)
                if chosen is not None and chosen.tracker is tracker:
                    self._unhold(request)
                    self._send(request, chosen, now)
                    return request
        return None

    def drain(self, now: float) -> Iterator[tuple[R, Tracker]]:
        self._integrate(now)
        if not self._any_usable(now):
            return
        for request in self.all_held():
            if request not in self._held and request not in self._again:
                continue
            chosen = self._choose(request, now)
            if chosen is not None:
                self._unhold(request)
                yield request, self._send(request, chosen, now)
                if not self._any_usable(now):
                    return

    def cancel(self, request: R, now: float) -> bool:
        self._asks.pop(request, None)
        return super().cancel(request, now)

    # --- what is asked of home

    def prefers(self, telling: bool) -> tuple[tuple[InstanceID, int], ...]:
        for ask in self._asks.values():
            ask.told = ask.told or telling
        return tuple(sorted(Counter(ask.instance for ask in self._asks.values()).items()))

    def heard(self) -> None:
        for ask in self._asks.values():
            if ask.told:
                ask.until = 0.0

    # --- slots

    def grant(self, slots: Iterable[tuple[InstanceID, str, int, float]], now: float) -> None:
        slots = tuple(slots)
        self._listed = {instance for instance, *_ in slots}
        super().grant(slots, now)
        self._full_until = {i: t for i, t in self._full_until.items() if t > now}

    def check(self, now: float) -> None:
        usable = [t for level in self._by_load for t in level]
        assert set(usable) == {t for t in self.trackers.values() if self._usable(t)}
        assert self.in_flight == sum(t.in_flight for t in self.trackers.values())
        assert self.held_bytes == sum(r.held_bytes for r in self.all_held())
        assert self._asks.keys() <= set(self.all_held()), "home is asked for nobody"
        self.check_told()
        for request in self.all_held():
            ask = self._asks.get(request)
            waits = ask is not None and now < ask.until
            fits = [t for t in usable if self._in_time(t, now)]
            assert waits or not fits or self._chooser.choose(request, fits, now) is None, (
                "held beside a usable instance"
            )

    # --- inside

    def _choose(self, request: R, now: float) -> Chosen | None:
        """Where it can go now."""
        ask = self._asks.get(request)
        if ask is not None and now < ask.until and self._full(ask.instance):
            return None
        usable = [t for level in self._by_load for t in level if self._in_time(t, now)]
        if not usable:
            return None
        there = [t for t in self.trackers.values() if t not in self._blocked and self._takes_part(t)]
        best = self._chooser.choose(request, there, now)
        if best is None or best.tracker in usable:
            return best
        instance = best.tracker.id
        if ask is None and self._full_until.get(instance, 0.0) <= now:
            self._asks[request] = _Ask(instance, now + ASK_S)
            return None
        if ask is not None and now < ask.until:
            return None
        if ask is not None:
            self._full_until[ask.instance] = now + FULL_S
        return self._chooser.choose(request, usable, now)

    def _full(self, instance: InstanceID) -> bool:
        """It would take requests if it had a slot for one."""
        tracker = self.trackers.get(instance)
        if tracker is None or tracker in self._blocked or not self._takes_part(tracker):
            return False
        return not self._usable(tracker)

    def _takes_part(self, tracker: Tracker) -> bool:
        return tracker.slots != 0 or tracker.id in self._listed

    def _any_usable(self, now: float) -> bool:
        return any(self._in_time(t, now) for level in self._by_load for t in level)

    def _send(self, request: R, chosen: Chosen, now: float) -> Tracker:
        self._asks.pop(request, None)
        self._chooser.chosen(request, chosen, now)
        return self._take(chosen.tracker)

    def _unhold(self, request: R) -> None:
        if self._again.pop(request, None) is None:
            del self._held[request]
        self.held_bytes -= request.held_bytes

    def _withdraw(self, tracker: Tracker) -> None:
        self._listed.discard(tracker.id)
        super()._withdraw(tracker)

    def _forget_unused(self, tracker: Tracker) -> None:
        if tracker.id not in self._listed:
            super()._forget_unused(tracker)


def least_busy(there: Sequence[Tracker]) -> Tracker:
    """One with a slot, and the fewest requests; for a request that has no preference."""
    return min(there, key=lambda t: (t.slots != UNLIMITED and t.in_flight >= t.slots, t.in_flight))


def chooses(revision: Revision) -> bool:
    """Its requests are not indifferent to where they go."""
    return revision.affinity != "none" or revision.role == "prefill"
