"""The shard machine: what one Dispatch function reports to the homes of its revisions, and obeys from them.

Throttlers decide where requests go; here it is decided when a home hears of it: at once when a request is held
and no slot is there, when slots that were taken back get free, when idle ones are given back, and every REPORT_S
while there is anything to do; at most one Demand of a revision is under way. A Demand is a complete state, so a
lost one is simply followed by a newer one. A home of an older term is not obeyed any more from the moment on at
which a newer one has asked (Recall) or the view has named another; slots leased from the old one stay usable
until they expire, and are reported to the new one; what has expired is not. It sends nothing and answers no request
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from kserve_ext.core.dispatch.choosing import Chooser, ChoosingThrottler
from kserve_ext.core.dispatch.facts import LEASE_TTL_S, QUIET_S, REPORT_S, UNLIMITED, WAITS, Demand, Grant
from kserve_ext.core.dispatch.throttler import HELD, R, Throttler, Tracker
from kserve_ext.core.facts import Instance, Revision
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey

GIVE_S = 2.0  # limited slots that were idle for so long go back to home
LEAST_RETRY_S = 0.05
MOST_RETRY_S = 0.5
AT_ONCE = 8  # revisions that a tick looks at before what has come meanwhile has its turn
KEEP_TERMS = 10_000  # of revisions, those that are no more included
MOST_ATTEMPTS = 8  # instances that one request is sent to, one after the other

K = TypeVar("K", bound=str)


def batched(keys: Sequence[K], count: int) -> Iterator[tuple[K, ...]]:
    """So many at a time."""
    for at in range(0, len(keys), count):
        yield tuple(keys[at : at + count])


class _Told(NamedTuple):
    """Running totals at one time."""

    at: float
    arrived: int = 0
    completed: int = 0
    area: float = 0.0


class Part(Generic[R]):
    """One revision on this shard."""

    __slots__ = (
        "active_at",
        "asked",
        "deleted",
        "dirty",
        "give_at",
        "granted",
        "home",
        "open_seq",
        "open_since",
        "permanent",
        "quiet",
        "refusal",
        "report_at",
        "retries",
        "retry_after_s",
        "retry_at",
        "revision",
        "sending",
        "seq",
        "term",
        "throttler",
        "told",
    )

    def __init__(
        self,
        revision: Revision,
        home: FunctionID | None,
        term: int,
        now: float,
        chooser: Chooser[R] | None = None,
    ) -> None:
        self.revision = revision
        self.home = home
        self.throttler: Throttler[R] = (
            Throttler(revision.hold, now)
            if chooser is None
            else ChoosingThrottler(revision.hold, now, chooser)
        )
        #: nothing of an older home is obeyed
        self.term = term
        #: seq of the newest Grant of that term
        self.granted = 0
        self.seq = 0
        #: the Demand under way, 0 = none, and when it was sent
        self.open_seq = 0
        self.open_since = now
        #: home should hear of it as soon as no Demand is under way
        self.dirty = False
        self.retries = 0
        self.retry_at = self.report_at = self.give_at = now
        self.active_at = now
        self.quiet = True
        self.deleted = False
        self.asked = 0  # `wanted` of the last Demand
        self.told = self.sending = _Told(now)
        #: why home has no instance, as last heard
        self.refusal = ""
        self.permanent = False
        self.retry_after_s = 0.0

    def demand(self, now: float, incarnation: int, told: _Told | None) -> Demand:
        """Its state now. `told`: totals that home knows; None leaves the metrics out."""
        throttler = self.throttler
        self.seq += 1
        self.asked = throttler.held
        area = throttler.area(now)
        prefers = throttler.prefers(told is not None)
        told = told or _Told(now, throttler.arrived, throttler.completed, area)
        return Demand(
            self.revision.key,
            self.seq,
            throttler.held,
            throttler.in_flight,
            throttler.held,
            throttler.arrived - told.arrived,
            throttler.completed - told.completed,
            area - told.area,
            now - told.at,
            throttler.uses,
            throttler.leases,
            incarnation,
            self.term,
            self.granted,
            prefers=prefers,
            waits_us=throttler.waits_us(now, WAITS),
        )

    @property
    def usable_at_once(self) -> bool:
        """An instance may be used before home has granted it."""
        return self.revision.concurrency == 0 and not self.quiet and not self.deleted

    def totals(self, now: float) -> _Told:
        throttler = self.throttler
        return _Told(now, throttler.arrived, throttler.completed, throttler.area(now))


class Shard(Generic[R]):
    def __init__(
        self, incarnation: int, chooser_of: Callable[[Revision], Chooser[R] | None] = lambda revision: None
    ) -> None:
        """`chooser_of`: what says where the requests of a revision should go; None: anywhere."""
        self.incarnation = incarnation
        self._chooser_of = chooser_of
        self.parts: dict[RevisionKey, Part[R]] = {}
        #: revisions with a Demand to send
        self.pending: set[RevisionKey] = set()
        self._active: dict[RevisionKey, Part[R]] = {}
        #: terms obeyed, also of revisions not known here (yet)
        self._terms: dict[RevisionKey, int] = {}
        self._epoch = 0
        self._home_of: Callable[[str], FunctionID | None] = lambda key: None

    # --- what is known

    def know(self, revision: Revision, now: float) -> None:
        if revision.key not in self.parts:
            home = self._home_of(revision.home_key)
            term = self._terms.get(revision.key, 0)
            self.parts[revision.key] = Part(revision, home, term, now, self._chooser_of(revision))

    def forget(self, key: RevisionKey, now: float) -> list[R]:
        """The revision was deleted: its held requests, which nobody will serve.

        Those in flight end as they do; home hears so, until nothing has happened for QUIET_S.
        """
        part = self.parts.get(key)
        if part is None:
            return []
        held = part.throttler.all_held()
        for request in held:
            part.throttler.cancel(request, now)
        part.deleted = True
        if part.quiet:
            self._drop(part)
        else:
            part.throttler.forget_all()
            self._mark(part)
        return held

    def view(self, epoch: int, home_of: Callable[[str], FunctionID | None]) -> None:
        """Homes that have moved are told everything; the former ones are not obeyed from now on."""
        self._epoch, self._home_of = epoch, home_of
        for part in self.parts.values():
            home = home_of(part.revision.home_key)
            if home == part.home:
                continue
            if part.home is not None:
                self._obey(part, epoch)
            part.home = home
            part.open_seq = part.retries = 0
            part.retry_at = part.open_since
            if not part.quiet:
                self._mark(part)

    # --- requests

    def submit(self, key: RevisionKey, request: R, now: float) -> Tracker | int:
        part = self.parts[key]
        part.active_at = now
        if part.quiet:
            self._wake(part, now)
        outcome = part.throttler.submit(request, now)
        if outcome is HELD and part.asked < part.throttler.held:
            self._mark(part)
        return outcome

    def finished(self, key: RevisionKey, instance: InstanceID, now: float) -> R | None:
        """The request that goes to the same instance next."""
        part = self.parts[key]
        part.active_at = now
        tracker = part.throttler.trackers[instance]
        taken_back = tracker.slots != UNLIMITED and tracker.in_flight > tracker.slots
        following = part.throttler.release(instance, now)
        if taken_back or (following is not None and not part.throttler.held):
            self._mark(part)
        return following

    def failed(self, key: RevisionKey, request: R, instance: InstanceID, again: bool, now: float) -> None:
        """The instance broke off before it answered. `again`: hold the request; then drain."""
        part = self.parts[key]
        part.active_at = now
        if again:
            part.throttler.put_back(request, instance, now)
        else:
            part.throttler.block(instance, now)
        self._mark(part)

    def cancelled(self, key: RevisionKey, request: R, now: float) -> bool:
        part = self.parts.get(key)
        if part is None or not part.throttler.cancel(request, now):
            return False
        if not part.throttler.held:
            self._mark(part)
        return True

    def drain(self, key: RevisionKey, now: float) -> Iterator[tuple[R, Tracker]]:
        """Held requests that can go now; each is to be carried out before the next is taken."""
        part = self.parts.get(key)
        if part is not None and part.throttler.held:
            for sent in part.throttler.drain(now):
                part.asked = max(
                    0, part.asked - 1
                )  # for the next one that is held home has to be asked again
                yield sent
            if not part.throttler.held:
                self._mark(part)

    # --- homes

    def due(self, now: float) -> list[tuple[FunctionID, Demand]]:
        """The Demands to send now, each with its home."""
        out: list[tuple[FunctionID, Demand]] = []
        for key in sorted(self.pending):
            part = self.parts[key]
            if part.home is None or part.open_seq or now < part.retry_at:
                continue
            self.pending.discard(key)
            part.dirty = False
            part.throttler.lapse(now)
            demand = part.demand(now, self.incarnation, part.told)
            part.sending = part.totals(now)
            part.open_seq, part.open_since = demand.seq, now
            part.report_at = now + REPORT_S
            out.append((part.home, demand))
        return out

    def answered(self, key: RevisionKey, seq: int, now: float) -> None:
        """Home has heard this Demand, which renews the lease. Apply the Grant in its answer first; then drain."""
        part = self.parts.get(key)
        if part is not None and part.open_seq == seq:
            throttler = part.throttler
            throttler.valid_until = max(throttler.valid_until, part.open_since + LEASE_TTL_S)
            part.open_seq = part.retries = 0
            part.told = part.sending
            throttler.heard()

    def renew(self, me: FunctionID, now: float) -> None:
        """Its own process is sure that it is the home of what it was: no lease from there is waited for.

        Say it while that is so; what has lapsed stays so.
        """
        for part in self._active.values():
            throttler = part.throttler
            if part.home == me and now < throttler.valid_until:
                throttler.valid_until = max(throttler.valid_until, now + LEASE_TTL_S)

    def unanswered(self, key: RevisionKey, seq: int, now: float) -> None:
        """It was lost, or whoever got it isn't the home: again soon."""
        part = self.parts.get(key)
        if part is not None and part.open_seq == seq:
            part.open_seq = 0
            part.retry_at = now + min(MOST_RETRY_S, LEAST_RETRY_S * 2**part.retries)
            part.retries = min(part.retries + 1, 10)
            self._mark(part)

    def report(self, key: RevisionKey, now: float) -> Demand | None:
        """Its state as the answer to a pushed Grant: home need not hear of it again.

        If the answer is lost, home pushes anew. What has arrived and ended is told by the next Demand.
        """
        part = self.parts.get(key)
        if part is None:
            return None
        demand = part.demand(now, self.incarnation, None)
        if part.home is not None and not demand.prefers:  # those wait for an answer
            part.dirty = False
            self.pending.discard(key)
        return demand

    def grant(self, grant: Grant, now: float) -> list[R]:
        """Obeys a Grant; the held requests that it refuses for good. Then drain."""
        part = self.parts.get(grant.revision)
        if part is None or grant.term < part.term:
            return []
        self._obey(part, grant.term)
        throttler = part.throttler
        if grant.seq <= part.granted:
            return []
        part.granted = grant.seq
        part.refusal, part.permanent = grant.refusal, grant.permanent
        part.retry_after_s = grant.retry_after_s
        before = (throttler.granted, len(throttler.trackers)) if grant.answers else None
        if part.quiet or part.deleted:
            throttler.forget_all()
        else:
            ages = grant.ages or (0.0,) * len(grant.slots)
            slots = zip(grant.slots, ages, strict=True)
            throttler.grant([(i, addr, n, now - age) for (i, addr, n), age in slots], now)
        # Of what is promised home hears when it is used, or with the next report.
        if before is not None and not part.quiet and before != (throttler.granted, len(throttler.trackers)):
            self._mark(part)
        if not part.permanent:
            return []
        held = throttler.all_held()
        for request in held:
            throttler.cancel(request, now)
        return held

    def recall(self, term: int, keys: Iterable[RevisionKey], now: float) -> list[Demand]:
        """A new home asks: from now on no older one is obeyed; what is used and leased here."""
        out: list[Demand] = []
        for key in keys:
            part = self.parts.get(key)
            if part is None:
                self._remember(key, max(term, self._terms.get(key, 0)))
            else:
                self._obey(part, term)
                part.throttler.lapse(now)
                out.append(part.demand(now, self.incarnation, None))
        return out

    def announced(self, key: RevisionKey, instances: Iterable[Instance], now: float) -> None:
        """A node says so, maybe before home knows. Unlimited instances, and promises, may be used. Then drain."""
        part = self.parts.get(key)
        if part is None:
            return
        for instance in instances:
            if instance.state in ("draining", "failed", "gone"):
                part.throttler.withdraw(instance.id)
            elif instance.state == "ready" and instance.addr:
                if part.usable_at_once:
                    part.throttler.announce(instance.id, instance.addr, now)
                else:
                    part.throttler.keep_promise(instance.id, instance.addr, now)

    def tick(
        self, now: float, keys: Iterable[RevisionKey] | None = None
    ) -> list[tuple[RevisionKey, list[R]]]:
        """Requests held for too long. Call it some times a second, then drain every active revision.

        `keys`: of the active revisions those to look at; else all.
        """
        late: list[tuple[RevisionKey, list[R]]] = []
        for key in list(self._active) if keys is None else keys:
            part = self._active.get(key)
            if part is None:
                continue
            throttler = part.throttler
            expired = throttler.expired(now)
            if expired:
                late.append((key, expired))
                self._mark(part)
            if throttler.held or throttler.in_flight:
                part.active_at = now
            elif now - part.active_at > QUIET_S:
                self._fall_silent(part)
                continue
            if now >= part.give_at:
                part.give_at = now + GIVE_S
                if throttler.give_idle():
                    self._mark(part)
            if now >= part.report_at or part.dirty:
                self._mark(part)
        return late

    def newest(self, key: RevisionKey) -> tuple[int, int]:
        """Term and seq of the newest Grant that was obeyed."""
        part = self.parts.get(key)
        return (part.term, part.granted) if part is not None else (0, 0)

    @property
    def active(self) -> list[RevisionKey]:
        return list(self._active)

    # --- inside

    def _obey(self, part: Part[R], term: int) -> None:
        if term > part.term:
            part.term, part.granted = term, 0
            self._remember(part.revision.key, term)

    def _remember(self, key: RevisionKey, term: int) -> None:
        """The newest last; of revisions that are long gone nobody has grants any more."""
        self._terms.pop(key, None)
        self._terms[key] = term
        while len(self._terms) > max(KEEP_TERMS, 2 * len(self.parts)):
            del self._terms[next(iter(self._terms))]

    def _mark(self, part: Part[R]) -> None:
        part.dirty = True
        self.pending.add(part.revision.key)

    def _wake(self, part: Part[R], now: float) -> None:
        part.quiet = False
        part.told = part.totals(now)
        part.report_at, part.give_at = now + REPORT_S, now + GIVE_S
        self._active[part.revision.key] = part

    def _drop(self, part: Part[R]) -> None:
        key = part.revision.key
        del self.parts[key]
        self._active.pop(key, None)
        self.pending.discard(key)

    def _fall_silent(self, part: Part[R]) -> None:
        if part.deleted:
            self._drop(part)
            return
        part.quiet = True
        del self._active[part.revision.key]
        part.throttler.forget_all()
        self._mark(part)
