"""An activator's admission of one revision: which pod takes the next request, and which requests are held.

Knative's semantics: at most containerConcurrency requests a pod (of those that assignment.py gives this activator);
up to 3 the first pod with a free slot, above that round robin, without a limit the less loaded of two at random.
Better than there: held requests go in order of arrival and are bounded in number and bytes; what is in flight to a
pod counts on while the pod is away, so that its return doesn't overcommit it; slots may be leased from others of ours
(core/sharing/shard.py), each pod with a limit of its own then. Reads no clock, touches no request.
In Knative: pkg/activator/net/throttler.go and lb_policy.go, pkg/queue/breaker.go. throttler.py is the same for slots
that a home grants.

Hot dialect: slots, int constants, bits instead of lists of free pods, no allocation for a request that isn't held.
Between two calls nothing is held while a pod has a free slot.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from kserve_ext.core.ids import InstanceID
from kserve_ext.core.knative.assignment import Share, assign, cluster_capacity

HELD: Final = 0
FULL: Final = 1

#: Up to this concurrency the first pod with room is filled before the next gets any.
MOST_CLUMPED: Final = 3
_UNLIMITED: Final = 1 << 31
NEVER: Final = float("inf")


class Holdable(Protocol):
    @property
    def held_bytes(self) -> int: ...
    @property
    def started(self) -> float:
        """When it came, in seconds of the clock that `now` is read from."""


R = TypeVar("R", bound=Holdable)


class Room:
    """The bytes that all revisions of one activator may hold together."""

    __slots__ = ("bytes", "held_bytes")

    def __init__(self, bytes_: int) -> None:
        self.bytes = bytes_
        self.held_bytes = 0


class Tracker:
    """One address that requests go to: a pod, or the revision's Service."""

    __slots__ = ("addr", "at", "in_flight", "limit")

    def __init__(self, addr: str) -> None:
        self.addr = addr
        self.at = -1  # place in Activation.assigned, -1 = nothing new goes there
        self.limit = 0
        self.in_flight = 0


class Activation(Generic[R]):
    __slots__ = (
        "_chance",
        "_cluster",
        "_held",
        "_leases",
        "_most_held",
        "_next",
        "_pods",
        "_ready",
        "_room",
        "assigned",
        "concurrency",
        "free",
        "in_flight",
        "returned",
        "share",
        "trackers",
        "valid_until",
    )

    def __init__(self, concurrency: int, most_held: int, room: Room, chance: Callable[[], float]) -> None:
        """`concurrency` 0: no limit; `chance`: a random number from 0 to 1."""
        self.concurrency = concurrency
        self.share = Share()
        self.in_flight = 0
        #: Where requests go, sorted by address.
        self.assigned: list[Tracker] = []
        #: With a limit: bit n is set when assigned[n] has a free slot; all and only those.
        self.free = 0
        #: The assigned ones, and those that have requests in flight.
        self.trackers: dict[str, Tracker] = {}
        self._most_held = most_held
        self._room = room
        self._chance = chance
        self._held: OrderedDict[R, None] = OrderedDict()
        self._next = 0  # where round robin goes on
        #: A request has ended whose slot is not one from here any more; whoever reads it clears it.
        self.returned = False
        #: When the leases end: nothing may be submitted or released from then on before they are set anew.
        self.valid_until = NEVER
        self._leases: Mapping[InstanceID, int] | None = None
        self._pods: list[str] = []
        self._cluster = ""
        self._ready = 0

    # --- requests

    def submit(self, request: R) -> Tracker | int:
        """Where it goes, or HELD, or FULL: a bound of holding is reached."""
        tracker = self._pick()
        if tracker is not None:
            return tracker
        room = self._room
        size = request.held_bytes
        if len(self._held) >= self._most_held or room.held_bytes + size > room.bytes:
            return FULL
        self._held[request] = None
        room.held_bytes += size
        return HELD

    def release(self, tracker: Tracker) -> R | None:
        """A request there has ended; the held request that takes its slot, if one does."""
        tracker.in_flight -= 1
        self.in_flight -= 1
        if tracker.at < 0:
            self.returned = True
            if not tracker.in_flight:
                self.trackers.pop(tracker.addr, None)
        elif self.concurrency:
            if tracker.in_flight >= tracker.limit:
                self.returned = True
                return None
            if self._held:
                tracker.in_flight += 1
                self.in_flight += 1
                return self._first()
            self.free |= 1 << tracker.at
        return None

    def put_back(self, request: R) -> None:
        """It could not be sent: held in front of all others; its slot is released apart."""
        self._held[request] = None
        self._held.move_to_end(request, last=False)
        self._room.held_bytes += request.held_bytes

    def cancel(self, request: R) -> bool:
        """Forgets a held request; False if it isn't held."""
        if request not in self._held:
            return False
        del self._held[request]
        self._room.held_bytes -= request.held_bytes
        return True

    def drain(self) -> Iterator[tuple[R, Tracker]]:
        """Held requests that can go, first come first served; carry each out before taking the next."""
        while self._held:
            tracker = self._pick()
            if tracker is None:
                return
            yield self._first(), tracker

    def dismiss(self) -> list[R]:
        """Takes out everything that is held."""
        held = list(self._held)
        for request in held:
            self.cancel(request)
        return held

    @property
    def held(self) -> int:
        return len(self._held)

    def waits_us(self, now: float, most: int) -> tuple[int, ...]:
        """How long held requests have waited, in microseconds: as many as `most`, the oldest first."""
        if not self._held:
            return ()
        began = sorted(request.started for request in islice(self._held, most))
        return tuple(max(0, round((now - at) * 1e6)) for at in began)

    @property
    def capacity(self) -> int:
        """How many may be in flight from here; without a limit 1 or 0: whether any may."""
        if not self.concurrency:
            return min(1, len(self.assigned))
        return sum(tracker.limit for tracker in self.assigned)

    @property
    def pods(self) -> list[str]:
        """Those that answer, sorted; none while requests go to the Service's address."""
        return [] if self._cluster else self._pods

    @property
    def by_service(self) -> bool:
        """Requests go to the Service's address, which spreads them itself."""
        return bool(self._cluster)

    def answers(self, pod: str) -> bool:
        at = bisect_left(self._pods, pod)
        return at < len(self._pods) and self._pods[at] == pod and not self._cluster

    @property
    def uses(self) -> dict[str, int]:
        """Requests in flight by pod."""
        return {tracker.addr: tracker.in_flight for tracker in self.trackers.values() if tracker.in_flight}

    # --- backends; then drain

    def use(self, pods: Iterable[str], cluster: str = "", ready: int = 0) -> None:
        """The pods that answer; or, with `cluster`, the Service's address and how many pods are ready behind it."""
        self._pods = sorted(pods)
        self._cluster = cluster
        self._ready = ready
        self._assign()

    def take_share(self, share: Share) -> None:
        if share != self.share:
            self.share = share
            self._assign()

    def lease(self, limits: Mapping[InstanceID, int] | None, until: float) -> None:
        """How many requests each pod may get, before `until`; None: by this activator's share."""
        self.valid_until = until
        if limits != self._leases:
            self._leases = None if limits is None else dict(limits)
            self._assign()

    # --- inside

    def _assign(self) -> None:
        limit = self.concurrency or _UNLIMITED
        leases = None if self._cluster else self._leases
        if self._cluster:
            if self.concurrency:
                limit = cluster_capacity(self.concurrency, self._ready, self.share.activators)
            addrs = [self._cluster] if self._ready else []
        elif leases is not None:
            addrs = [pod for pod in self._pods if leases.get(InstanceID(pod), 0) > 0]
        elif self.concurrency:
            addrs = list(assign(self._pods, self.share))
        else:
            addrs = self._pods
        for tracker in self.assigned:
            tracker.at = -1
        before, self.trackers = self.trackers, {}
        self.assigned = []
        self.free = 0
        for at, addr in enumerate(addrs):
            tracker = before.pop(addr) if addr in before else Tracker(addr)
            tracker.at = at
            tracker.limit = limit if leases is None else leases[InstanceID(addr)]
            self.assigned.append(tracker)
            self.trackers[addr] = tracker
            if self.concurrency and tracker.in_flight < tracker.limit:
                self.free |= 1 << at
        for addr, tracker in before.items():
            if tracker.in_flight:
                self.trackers[addr] = tracker

    def _pick(self) -> Tracker | None:
        """A tracker with one more request in flight."""
        assigned = self.assigned
        concurrency = self.concurrency
        if concurrency:
            free = self.free
            if not free:
                return None
            at = (free & -free).bit_length() - 1
            if concurrency > MOST_CLUMPED:
                later = free >> self._next
                if later:
                    at = self._next + (later & -later).bit_length() - 1
                self._next = at + 1
            tracker = assigned[at]
            tracker.in_flight += 1
            if tracker.in_flight >= tracker.limit:
                self.free = free & ~(1 << at)
        else:
            n = len(assigned)
            if not n:
                return None
            tracker = assigned[0] if n == 1 else self._less_loaded_of_two(n)
            tracker.in_flight += 1
        self.in_flight += 1
        return tracker

    def _less_loaded_of_two(self, n: int) -> Tracker:
        chance = self._chance
        one, two = 0, 1
        if n > 2:
            one = int(chance() * n)
            two = int(chance() * (n - 1))
            if two >= one:
                two += 1
        first, second = self.assigned[one], self.assigned[two]
        if first.in_flight == second.in_flight:
            return first if chance() < 0.5 else second
        return first if first.in_flight < second.in_flight else second

    def _first(self) -> R:
        request, _ = self._held.popitem(last=False)
        self._room.held_bytes -= request.held_bytes
        return request

    def check(self) -> None:
        """Invariants, for tests."""
        assert [t.at for t in self.assigned] == list(range(len(self.assigned)))
        assert [t.addr for t in self.assigned] == sorted({t.addr for t in self.assigned})
        assert self.in_flight == sum(t.in_flight for t in self.trackers.values())
        assert all(t.at >= 0 or t.in_flight for t in self.trackers.values())
        if self.concurrency:
            free = {t.at for t in self.assigned if t.in_flight < t.limit}
            assert self.free == sum(1 << at for at in free)
            assert not (self._held and free), "held although a pod has a free slot"
        else:
            assert not (self._held and self.assigned), "held although there is a pod"
