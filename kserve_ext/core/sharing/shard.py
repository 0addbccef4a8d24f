"""One activator's side of sharing a revision's slots: what it may use, what it says to the home, and whom it obeys.

Free: it uses its own slots (own.py), as an activator of Knative's does, and says nothing. When a request finds none,
it tells the home (Demand) and obeys what comes back (Grant): from then on it uses what it is granted, its own may be
lent to others for PLEDGE_S, and what it has beyond its own ends LEASE_TTL_S after what it said last was answered.
Where nobody answers both end by themselves and it is free again; so the home is in nobody's way. Slots that become
its own while others can be reached were another's a moment ago: it asks before it uses them, for CONFIRM_S at most.

Reads no clock, sends nothing. `slots` is the activation (core/knative/activation.py), whose limits this sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, QUIET_S, REPORT_S, WAITS, Demand, Grant
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.core.sharing.home import PLEDGE_S
from kserve_ext.core.sharing.own import Slots

#: So long it asks for its own before it uses it without an answer.
CONFIRM_S: Final = 1.0
#: Between two Demands.
LEAST_GAP_S: Final = 0.002
RETRY_S: Final = 0.1
_NEVER: Final = float("inf")


class Account(Protocol):
    """What the activation says of itself, and what it is told."""

    @property
    def held(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def uses(self) -> dict[str, int]: ...
    def answers(self, pod: str) -> bool: ...
    def waits_us(self, now: float, most: int) -> tuple[int, ...]: ...
    def lease(self, limits: Mapping[InstanceID, int] | None, until: float) -> None: ...


class SharingShard:
    def __init__(self, key: RevisionKey, slots: Account, incarnation: int) -> None:
        self.key = key
        self.incarnation = incarnation
        self.home: FunctionID | None = None  # None: nobody can be reached who would share
        self.own: Slots = {}
        #: Of its own, what may be used without a Grant while it is free.
        self.safe: dict[InstanceID, int] = {}
        #: What was granted; None: it is free.
        self.grants: dict[InstanceID, int] | None = None
        self.scarce = False
        #: A Demand is to go out.
        self.dirty = False
        self._slots = slots
        self._obeyed: FunctionID | None = None  # whose grants those are
        self._term = self._granted = 0
        self._lease_until = self._pledge_until = 0.0
        self._bound: tuple[float, FunctionID] = (0.0, FunctionID(""))  # its pledge to a former home
        self._free_at = _NEVER  # when all of its own is used although no home has confirmed it
        self._active_until = self._report_at = self._retry_at = 0.0
        self._shuns: set[InstanceID] = set()
        self._seq = self._open = self._floor = 0  # Demands: the last, the one under way, those of no account
        self._open_at = 0.0

    # --- what there is

    def view(self, home: FunctionID | None, own: Slots, now: float) -> None:
        """Who the home is, and what is its own by position."""
        if home != self.home:
            self.home, self._open, self._retry_at = home, 0, now
            self.dirty = self.active(now)
        self.own = own
        if self.grants is None:
            self._settle_own()
        self._set(now)

    def gone(self, home: FunctionID, now: float) -> None:
        """The process that was this home is no more: what it has lent ends with the leases it gave."""
        soon = now + LEASE_TTL_S + REPORT_S
        if self._obeyed == home:
            self._pledge_until = min(self._pledge_until, soon)
        if self._bound[1] == home:
            self._bound = (min(self._bound[0], soon), home)

    def release(self, now: float) -> None:
        """The home, in this very process, lends to nobody else: free as soon as no former one has lent its own."""
        if self.grants is not None and now >= self._former()[0]:
            self._be_free()
            self._set(now)

    # --- requests

    def wants(self, now: float) -> None:
        """A request is held."""
        self._active_until = now + QUIET_S
        self.dirty = True
        if self.grants is None and self._free_at == _NEVER and not self._all_safe():
            self._free_at = now + CONFIRM_S

    def freed(self) -> None:
        """A slot isn't used any more that was taken back, or that others wait for."""
        self.dirty = True

    # --- Demands

    def due(self, now: float) -> float:
        """When a Demand may go out; never while one is under way or there is nothing to say."""
        if self.home is None or self._open or not self.active(now):
            return _NEVER
        return self._retry_at if self.dirty else max(self._retry_at, self._report_at)

    def demand(self, now: float) -> Demand:
        """Send it to the home; then answered() or unanswered()."""
        self.dirty = False
        self._retry_at, self._report_at = now + LEAST_GAP_S, now + REPORT_S
        demand = self.state(now)
        self._open, self._open_at = demand.seq, now
        return demand

    def state(self, now: float) -> Demand:
        """Everything, and before that it gives back what is of no use here."""
        slots = self._slots
        uses = slots.uses
        if self.grants is not None:
            self._give_back(uses, now)
        self._seq += 1
        obeys = self._obeyed is not None and self._obeyed == self.home
        if not obeys:
            self._floor = max(self._floor, self._open)  # an answer to what was said before comes too late
        until, former = self._former()
        return Demand(
            self.key,
            self._seq,
            slots.held,
            slots.in_flight,
            slots.held,
            0,
            0,
            0.0,
            0.0,
            tuple((InstanceID(pod), n) for pod, n in uses.items()),
            tuple((pod, n) for pod, n in self._in_force(now).items() if n),
            self.incarnation,
            self._term if obeys else 0,
            self._granted if obeys else 0,
            max(0.0, until - now),
            former,
            tuple(sorted(self._shuns)),
            waits_us=slots.waits_us(now, WAITS),
        )

    def answered(self, seq: int, now: float) -> None:
        """The home has heard it, which renews what it has obeyed; after grant()."""
        if seq == self._open:
            self._open = 0
            if self._obeyed == self.home and self.grants is not None:
                self._lease_until = max(self._lease_until, self._open_at + LEASE_TTL_S)
                self._set(now)

    def unanswered(self, seq: int, now: float) -> None:
        if seq == self._open:
            self._open = 0
            self._retry_at = now + RETRY_S
            self.dirty = True

    # --- homes

    def recalled(self, home: FunctionID, now: float) -> Demand:
        """A home asks what is used here; who has another one, from here, only says so."""
        if home == self.home:
            self._active_until = max(self._active_until, now + QUIET_S)
            self.dirty = True
        return self.state(now)

    def grant(self, home: FunctionID, grant: Grant, now: float) -> bool:
        """Obeys it, or doesn't: False. Then drain."""
        if home != self.home:
            return False
        joins = self.grants is None or self._obeyed != home or grant.term != self._term
        if joins:  # only as the answer to what was said last: what is used has only become less since
            if grant.answers != self._open or grant.answers <= self._floor or not grant.answers:
                return False
            self._bound = (self._pledge_until, home) if self._obeyed == home else self._former()
            self._lease_until = 0.0
        elif grant.seq <= self._granted:
            return False
        self._obeyed, self._term, self._granted = home, grant.term, grant.seq
        self.grants = {pod: count for pod, _, count in grant.slots}
        self._pledge_until = now + PLEDGE_S
        self._free_at = _NEVER
        self.scarce = grant.scarce
        if grant.needed:
            self._active_until = max(self._active_until, now + LEASE_TTL_S)
        if joins:
            self.dirty, self._retry_at = True, now  # that it obeys: before that its own can't be lent
            self._lease_until = self._open_at + LEASE_TTL_S
        self._set(now)
        return True

    # --- time

    def tick(self, now: float) -> None:
        """Leases and pledges end; then drain."""
        self._shuns = {pod for pod in self._shuns if not self._slots.answers(pod)}
        free_at = self._free_at if self.grants is None else max(self._pledge_until, self._bound[0])
        if now >= free_at:
            self._be_free()
        self._set(now)

    def active(self, now: float) -> bool:
        """It has something to do with others: it reports."""
        if now < self._active_until:
            return True
        return self.grants is not None and any(
            count > self.own.get(InstanceID(pod), 0) for pod, count in self._slots.uses.items()
        )

    def silent(self, now: float) -> bool:
        """No report will say that requests are held: `wants` has to."""
        return self.idle or not self.active(now)

    @property
    def idle(self) -> bool:
        """Nothing of it changes with time."""
        return self.grants is None and self._free_at == _NEVER and not self.dirty

    # --- inside

    def _settle_own(self) -> None:
        if self.home is None:
            self._be_free()
            return
        self.safe = {p: min(n, self.own[p]) for p, n in self.safe.items() if p in self.own}
        if self._all_safe():
            self._free_at = _NEVER

    def _all_safe(self) -> bool:
        return all(self.safe.get(pod, 0) >= count for pod, count in self.own.items())

    def _be_free(self) -> None:
        """Its own is its own again."""
        self.grants = None
        self.scarce = False
        self._obeyed = None
        self._term = self._granted = 0
        self._bound = (0.0, FunctionID(""))
        self._free_at = _NEVER
        self._floor = self._seq  # what was said until now doesn't say so
        self._shuns.clear()
        self.safe = dict(self.own)

    def _former(self) -> tuple[float, FunctionID]:
        """The home that may have lent its own, other than the present one, and until when."""
        if self.grants is not None and self._obeyed is not None and self._obeyed != self.home:
            return max(self._bound[0], self._pledge_until), self._obeyed
        return self._bound

    def _in_force(self, now: float) -> dict[InstanceID, int]:
        if self.grants is None:
            return self.safe
        if now >= self._lease_until:
            self.grants = {p: min(n, self.own[p]) for p, n in self.grants.items() if p in self.own}
        return self.grants

    def _give_back(self, uses: dict[str, int], now: float) -> None:
        assert self.grants is not None
        idle = self.scarce and not self._slots.held
        before, self.grants = self.grants, {}
        for pod, count in before.items():
            if not self._slots.answers(pod):
                self._shuns.add(pod)
                continue
            kept = min(count, uses.get(pod, 0)) if idle else count
            if kept:
                self.grants[pod] = kept
        if self.grants != before:
            self._set(now)

    def _set(self, now: float) -> None:
        if self.grants is None and self.home is None:
            self._slots.lease(None, _NEVER)  # as an activator of Knative's own
            return
        limits = self._in_force(now)
        until = self._lease_until if self.grants is not None and now < self._lease_until else _NEVER
        self._slots.lease(limits, until)
