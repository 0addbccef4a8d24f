"""The home of a revision among activators: lends the slots that members don't use to those that wait.

Members' own slots (own.py) make the pool: a member's are in it from the time on at which it is known to have obeyed a
Grant, for as long as it said then that it won't use them without another (PLEDGE_S). So the home never gives what
somebody may take without it: an activator of Knative's own, a member that can't be reached, one that has another
home. Every answer renews a member's leases by LEASE_TTL_S, which is why a pledge that has less left than that lends
no more. The account of who may use what is dispatch/leases.py; the autoscaler decides how many pods there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, QUIET_S, Demand, Grant
from kserve_ext.core.dispatch.leases import Leases
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.core.sharing.own import Slots

#: For so long after a Grant a member doesn't use its own slots beyond it.
PLEDGE_S: Final = 2 * LEASE_TTL_S
#: Between two settlings, for each pod of each member, and at most: where that is work, demands go together.
SETTLE_S: Final = 3e-6
MOST_SETTLE_S: Final = 0.2
#: How much earlier than need be a member's own slots are not lent any more.
SLACK_S: Final = 2 * MOST_SETTLE_S
KEPT_SENT: Final = 32
#: When nobody has lacked a slot for so long, they go back to those whose own they are.
RESTORE_S: Final = 0.5
_NEVER: Final = float("inf")

Push = tuple[FunctionID, Grant]


class SharingHome:
    """One revision's. `settled` what follows from the calls before it."""

    def __init__(self, key: RevisionKey, me: FunctionID, concurrency: int, term: int, now: float) -> None:
        self.key = key
        self.me = me
        #: Grows with every take-over by this process; who has obeyed another one isn't counted on.
        self.term = term
        self.leases = Leases(concurrency, now)
        self.leases.frozen_until = _NEVER  # what is frozen is said each time
        #: Who has yet to say what it uses: until then, or open_by, nothing is given out.
        self.silent: set[FunctionID] = set()
        self.open_by = now
        self.pods: Sequence[InstanceID] = ()
        self.own: Mapping[FunctionID, Slots] = {}
        #: Until when a member's own slots may be lent.
        self.pledged: dict[FunctionID, float] = {}
        #: Until when, and to whom, they are still lent by a former home.
        self.bound: dict[FunctionID, tuple[float, FunctionID]] = {}
        self._members: dict[FunctionID, int] = {}
        self.settle_at = _NEVER
        self.lacked_at = self.heard_at = now
        self._settled_at = -_NEVER
        self._seq = 0
        self._sent: dict[FunctionID, dict[int, float]] = {}

    # --- what there is

    def view(
        self,
        pods: Sequence[InstanceID],
        own: Mapping[FunctionID, Slots],
        members: Mapping[FunctionID, int],
        now: float,
    ) -> None:
        """The pods, whose slots they are, and the activators that can be reached, with their incarnations."""
        leases = self.leases
        # Who doesn't report may be using what was its own until now.
        unheard = members.keys() - leases.accounts.keys()
        asked = unheard if own != self.own else unheard - self._members.keys()
        self.silent = (self.silent | asked) & members.keys()
        if asked:
            self.open_by = now + LEASE_TTL_S
        self.pods, self.own, self._members = pods, own, dict(members)
        for member, account in leases.accounts.items():
            if member not in members:
                leases.left(member, now)
            elif account.incarnation < members[member]:
                leases.void(member, members[member])
                self.pledged.pop(member, None)
        self._soon(now)

    # --- members

    def demand(self, member: FunctionID, demand: Demand, now: float) -> Grant | None:
        """The Grant that answers it, which may be what there was before; None: it is older than one known."""
        if not self.heard(member, demand, now):
            return None
        if now >= self.settle_at:
            self._settle(now)
        return self._grant(member, demand.seq, now)

    def heard(self, member: FunctionID, demand: Demand | None, now: float) -> bool:
        """A member's state, unasked or as an answer; None: it has nothing to do with this home."""
        self.silent.discard(member)
        if demand is not None:
            self._joining(member, demand)
        if demand is None or not self.leases.report(member, demand, self.term, now):
            return False
        self.heard_at = now
        if demand.bound_s > 0:
            self.bound[member] = (now + demand.bound_s, demand.bound_to)
        else:
            self.bound.pop(member, None)
        sent = self._sent.get(member, {})
        if demand.term == self.term and demand.granted in sent:
            self.pledged[member] = sent[demand.granted] + PLEDGE_S
            for seq in [seq for seq in sent if seq < demand.granted]:
                del sent[seq]
        self._soon(now)
        return True

    # --- what follows

    def settled(self, now: float) -> list[Push]:
        """Call it when settle_at has come: Grants to those of whom more or less is intended than they were told."""
        if now < self.settle_at:
            return []
        return [(member, self._grant(member, 0, now)) for member in self._settle(now)]

    def tick(self, now: float) -> None:
        """Leases and pledges end with time."""
        self._soon(now)

    @property
    def alone(self) -> bool:
        """Nobody but its own process has anything to do with it."""
        return not self.silent and self._members.keys() | self.leases.accounts.keys() <= {self.me}

    def over(self, now: float) -> bool:
        """Nobody has had anything to do with it for so long that it may be dropped."""
        return now - self.heard_at > PLEDGE_S

    @property
    def to_ask(self) -> set[FunctionID]:
        """Members to Recall: those that have yet to say what they use; and while slots are short, who is free."""
        return self.silent | (self._members.keys() - self.leases.accounts.keys() if self.lacking else set())

    @property
    def lent(self) -> int:
        """Slots that members may use beyond their own."""
        return sum(
            max(0, count - self.own.get(member, {}).get(pod, 0))
            for member, account in self.leases.accounts.items()
            for pod, count in account.intended.items()
        )

    @property
    def lacking(self) -> bool:
        accounts = self.leases.accounts.values()
        return any(a.left_at is None and a.wanted > 0 and a.need > a.total for a in accounts)

    # --- inside

    def _joining(self, member: FunctionID, demand: Demand) -> None:
        """It obeys no Grant from here: those on their way, it won't (SharingShard.grant)."""
        account = self.leases.accounts.get(member)
        if account is not None and demand.term != self.term and demand.seq > account.seq:
            account.joined = False
            account.unacked.clear()
            self.pledged.pop(member, None)

    def _soon(self, now: float) -> None:
        """Settling costs time: the more pods and members there are the less often."""
        gap = min(MOST_SETTLE_S, SETTLE_S * len(self.pods) * len(self.leases.accounts))
        self.settle_at = min(self.settle_at, max(now, self._settled_at + gap))

    def _settle(self, now: float) -> list[FunctionID]:
        self.settle_at, self._settled_at = _NEVER, now
        leases = self.leases
        for member, account in leases.accounts.items():
            if now - account.heard_at > LEASE_TTL_S:  # it has its own again, and nothing beyond
                leases.left(member, now)
        leases.expire(now)
        for forgotten in self._sent.keys() - leases.accounts.keys():
            del self._sent[forgotten]
            self.pledged.pop(forgotten, None)
            self.bound.pop(forgotten, None)
        frozen = bool(self.silent) and now < self.open_by
        leases.reserved = self._reserved(now)
        held_back = set(self.pods) if frozen else self._bound(now)
        if not frozen:
            leases.trim(self.pods, self.own)
        changed = leases.allot(self.pods, held_back, now)
        if self.lacking:
            self.lacked_at = now
        elif now - self.lacked_at > RESTORE_S:
            changed += self._restore(held_back)
        return sorted(set(changed))

    def _restore(self, held_back: set[InstanceID]) -> list[FunctionID]:
        """Everybody gets its own back, to have it at hand for the next request; to whom this is news."""
        told = []
        for member, account in self.leases.accounts.items():
            if not account.joined or account.left_at is not None:
                continue
            for pod, count in self.own.get(member, {}).items():
                more = min(count - account.intended.get(pod, 0), self.leases.free(pod))
                if more > 0 and pod not in held_back and pod not in account.shuns:
                    account.intended[pod] = account.intended.get(pod, 0) + more
                    told.append(member)
        return told

    def _reserved(self, now: float) -> dict[InstanceID, int]:
        """Slots that may be used without this home, beyond those that accounts have."""
        accounts, reserved = self.leases.accounts, dict.fromkeys(self.pods, self.leases.limit)
        for member, slots in self.own.items():
            account = accounts.get(member)
            pooled = account is not None and now + LEASE_TTL_S + SLACK_S <= self.pledged.get(member, 0.0)
            for pod, count in slots.items():
                kept = count if pooled else min(count, account.bound(pod)) if account is not None else 0
                reserved[pod] = reserved.get(pod, self.leases.limit) - kept
        return reserved

    def _bound(self, now: float) -> set[InstanceID]:
        """What a former home may have given to somebody who isn't known here."""
        found: set[InstanceID] = set()
        for member, (until, former) in self.bound.items():
            account = self.leases.accounts.get(former)
            obeys = not self.silent and account is not None and account.joined and account.left_at is None
            if now < until and not obeys:
                found.update(self.own.get(member, ()))
        return found

    def _grant(self, member: FunctionID, answers: int, now: float) -> Grant:
        self._seq += 1
        self.leases.sent(member, self._seq, now)
        sent = self._sent.setdefault(member, {})
        sent[self._seq] = now
        if len(sent) > KEPT_SENT:
            del sent[next(iter(sent))]
        slots = tuple((pod, pod, count) for pod, count in self.leases.accounts[member].intended.items())
        return Grant(
            self.key,
            self.me,
            self._seq,
            LEASE_TTL_S,
            slots,
            term=self.term,
            answers=answers,
            scarce=self.lacking,
            needed=now - self.lacked_at < QUIET_S or self._lent_in_use(),
        )

    def _lent_in_use(self) -> bool:
        return any(
            used > self.own.get(member, {}).get(pod, 0)
            for member, account in self.leases.accounts.items()
            for pod, used in account.uses.items()
        )
