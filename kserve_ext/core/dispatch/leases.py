"""Home's account of slots: which shard may use how many of each instance of one revision.

Never more than the concurrency limit of an instance in total, whatever is lost or late: what a shard may use is
bounded by its last report and by every Grant that it has not yet acknowledged; only what is outside all these
bounds is free. A free slot goes to the request that has waited longest, whichever shard holds it; requests whose
age no Demand tells come after these, by fair shares (max-min) of their shards. While too many wait, what a shard has
beyond its fair share is taken back by a smaller Grant, unless its own requests have waited longer; what can't be
split evenly changes hands every TURN_S. Slots of instances that start are *promised* to requests for which no slot is
free: a shard that hears from the node that one is ready needs no word of home then. An account ends with the shard's
process: known from a higher incarnation, or from its absence from the view for longer than its lease lasts. With
unlimited concurrency a Grant names all instances, and the account only says who has heard of what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, merge
from itertools import islice

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, QUIET_S, SEEN_TTL_S, Demand
from kserve_ext.core.ids import FunctionID, InstanceID

TURN_S = 0.5
ON_ITS_WAY_S = 0.2  # for so long a Grant that isn't acknowledged is not repeated
KEPT_GRANTS = 8

Slots = dict[InstanceID, int]
Basis = tuple[int, bool, int, tuple[FunctionID, ...]]


@dataclass(slots=True)
class Account:
    """One shard."""

    incarnation: int = 0
    seq: int = -1
    heard_at: float = 0.0
    #: it has obeyed this home's term, and said so
    joined: bool = False
    held: int = 0
    in_flight: int = 0
    wanted: int = 0
    #: when its requests began to wait, the oldest first; of as many as it tells
    waiting: tuple[float, ...] = ()
    uses: Slots = field(default_factory=dict)
    #: none of these is of use to it
    shuns: frozenset[InstanceID] = frozenset()
    #: idle slots that would serve it better than those of other instances
    prefers: Slots = field(default_factory=dict)
    reported: Slots = field(default_factory=dict)
    #: what the next Grant says
    intended: Slots = field(default_factory=dict)
    #: as counted last: what is intended, with what it still uses of slots that were taken back (they serve its need
    #: as long as they do)
    occupied: int = 0
    #: Grants it has not acknowledged
    unacked: list[tuple[int, Slots]] = field(default_factory=list)
    #: the newest Grant that it has acknowledged, less limited slots that it has given back since
    acked: Slots = field(default_factory=dict)
    #: its seq; 0 = none of this account's: it may still be told what an earlier account of it was given
    acked_seq: int = 0
    sent_at: float = 0.0
    left_at: float | None = None
    #: what it was last given of these it can't use before it is told where they are
    unreachable: set[InstanceID] = field(default_factory=set)
    #: why there is nothing for it, as last told, and whether for good
    told: tuple[str, bool] = ("", False)

    def bound(self, instance: InstanceID) -> int:
        """The most that it may be using, or be told to use."""
        return max(self.uses.get(instance, 0), self.leased(instance))

    def bounds(self) -> Slots:
        """The same of all instances."""
        found = self.uses.copy()
        for slots in (self.reported, self.intended, *[slots for _, slots in self.unacked]):
            if slots == found:
                continue  # as they are while all that it has is in use
            for instance, n in slots.items():
                if n > found.get(instance, 0):
                    found[instance] = n
        return found

    def leased(self, instance: InstanceID) -> int:
        most = max(self.reported.get(instance, 0), self.intended.get(instance, 0))
        return max([most, *(slots.get(instance, 0) for _, slots in self.unacked)])

    @property
    def need(self) -> int:
        return self.in_flight + self.wanted

    @property
    def total(self) -> int:
        return sum(self.intended.values())

    def count(self) -> None:
        """Brings `occupied` up to date; give() keeps it so."""
        intended, uses = self.intended, self.uses
        self.occupied = self.total
        if uses == intended:
            return
        for instance, n in uses.items():
            if (beyond := n - intended.get(instance, 0)) > 0:
                self.occupied += beyond

    def give(self, instance: InstanceID, count: int) -> None:
        """So many more of it, or less, are intended."""
        before, used = self.intended.get(instance, 0), self.uses.get(instance, 0)
        after = before + count
        self.occupied += max(after, used) - max(before, used)
        if after:
            self.intended[instance] = after
        else:
            del self.intended[instance]

    @property
    def lacks(self) -> int:
        """Requests that wait, and for which it has no slot."""
        return self.need - self.occupied if self.wanted > 0 else 0

    @property
    def lacking(self) -> tuple[float, ...]:
        """When those of them began to wait of which that is known; its slots serve the oldest."""
        return self.waiting[max(0, self.wanted - self.lacks) :]

    def may_use(self, instance: InstanceID, now: float) -> bool:
        """It may still send requests there, or hasn't finished those it sent."""
        if self.leased(instance):
            return True
        if now - self.heard_at > LEASE_TTL_S:
            return False
        told = instance in self.acked or any(instance in slots for _, slots in self.unacked)
        return told or self.uses.get(instance, 0) > 0


class Leases:
    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit  # 0 = unlimited
        self.accounts: dict[FunctionID, Account] = {}
        #: no slot of a limited revision is given out anew before this time (shards of the former home)
        self.frozen_until = now
        #: slots of an instance that aren't this home's to give
        self.reserved: Slots = {}
        #: of accounts, by what shards said or by their end
        self._changes = 0

    # --- shards

    def report(self, shard: FunctionID, demand: Demand, term: int, now: float) -> bool:
        """Takes a Demand in; False when it is older than one known already."""
        account = self.accounts.get(shard)
        if account is None or demand.incarnation > account.incarnation:
            account = self.accounts[shard] = Account(demand.incarnation)
        elif demand.incarnation < account.incarnation:
            return False
        account.left_at = None
        self._changes += 1
        if demand.seq <= account.seq:
            return False
        account.seq, account.heard_at = demand.seq, now
        account.held, account.in_flight, account.wanted = demand.held, demand.in_flight, demand.wanted
        account.waiting = tuple(now - wait * 1e-6 for wait in demand.waits_us)
        account.uses, account.reported = dict(demand.uses), dict(demand.leases)
        if account.unreachable:
            account.unreachable.difference_update(account.uses)
        account.shuns, account.prefers = frozenset(demand.shuns), dict(demand.prefers)
        first = not account.joined
        obeys = demand.term == term
        account.joined = account.joined or obeys or now >= self.frozen_until
        if account.unacked and obeys:
            for seq, slots in account.unacked:
                if seq <= demand.granted:
                    account.acked, account.acked_seq, first = slots, seq, False
            account.unacked = [g for g in account.unacked if g[0] > demand.granted]
        intended, reported = account.intended, account.reported
        if self.limit and obeys and account.acked != reported:
            account.acked = {i: min(n, reported[i]) for i, n in account.acked.items() if i in reported}
        if first and not account.unacked:
            # What the former home gave it, it keeps; not what went to others while it was silent for too long.
            account.intended = {i: min(n, self._left_by_others(i, account)) for i, n in reported.items()}
        elif not account.unacked and self.limit and intended != reported:
            account.intended = {i: min(n, reported[i]) for i, n in intended.items() if i in reported}
        return True

    def void(self, shard: FunctionID, incarnation: int) -> bool:
        """The process before this incarnation is dead, and with it what it used."""
        account = self.accounts.get(shard)
        if account is None or account.incarnation >= incarnation:
            return False
        self.accounts[shard] = Account(incarnation)
        self._changes += 1
        return True

    def ended(self, shard: FunctionID) -> None:
        """Its process, unless it is back: another one of its name has an account of its own."""
        account = self.accounts.get(shard)
        if account is not None and account.left_at is not None:
            del self.accounts[shard]
            self._changes += 1

    def left(self, shard: FunctionID, now: float) -> None:
        """It is out of the view: its demand counts no more, its slots when its lease is over."""
        account = self.accounts.get(shard)
        if account is not None and account.left_at is None:
            account.left_at = now
            account.held = account.in_flight = account.wanted = 0
            account.waiting = ()
            self._changes += 1

    def expire(self, now: float, seen: Container[FunctionID] = ()) -> bool:
        """Forgets who left. `seen`: shards whose end will be told; what they use isn't free before."""
        gone = [
            shard
            for shard, account in self.accounts.items()
            if account.left_at is not None
            and now - account.heard_at > (SEEN_TTL_S if shard in seen else LEASE_TTL_S)
        ]
        for shard in gone:
            del self.accounts[shard]
        self._changes += len(gone)
        return bool(gone)

    # --- slots

    def free(self, instance: InstanceID) -> int:
        given = sum(account.bound(instance) for account in self.accounts.values())
        return self.limit - self.reserved.get(instance, 0) - given

    def _free(self, usable: Iterable[InstanceID], frozen: Container[InstanceID]) -> Slots:
        """Of these, those with free slots; in one pass over what is given out."""
        if self.reserved or frozen:
            left = {i: self.limit - self.reserved.get(i, 0) for i in usable if i not in frozen}
        else:
            left = dict.fromkeys(usable, self.limit)
        for account in self.accounts.values():
            for instance, n in account.bounds().items():
                if instance in left:
                    left[instance] -= n
        return {i: n for i, n in left.items() if n > 0}

    def _left_by_others(self, instance: InstanceID, account: Account) -> int:
        others = sum(a.bound(instance) for a in self.accounts.values() if a is not account)
        return max(0, self.limit - self.reserved.get(instance, 0) - others)

    def in_use(self, instance: InstanceID) -> int:
        return sum(account.uses.get(instance, 0) for account in self.accounts.values())

    def held_by(self, instance: InstanceID, now: float) -> bool:
        """Some shard may still send requests there, or hasn't finished those it sent."""
        return any(account.may_use(instance, now) for account in self.accounts.values())

    def basis(self, now: float) -> Basis:
        """What decides besides who may be used: as long as it is the same, nothing is to be allotted anew."""
        if self.limit == 0:
            listening = tuple(s for s, a in self.accounts.items() if self._listens(a, now))
            return self._changes, False, 0, listening
        asks = any(a.wanted > 0 or a.prefers for a in self.accounts.values())
        return self._changes, now < self.frozen_until, int(now / TURN_S) if asks else 0, ()

    def allot(
        self,
        usable: Sequence[InstanceID],
        inherited: Container[InstanceID],
        now: float,
        coming: Sequence[InstanceID] = (),
    ) -> list[FunctionID]:
        """Changes what is intended; the shards that a Grant should tell so.

        `usable`: ready and not to be stopped; `coming`: will be. `inherited`: a former home may have given out slots
        of these, so nothing of them is given out anew while frozen.
        """
        before = {shard: dict(account.intended) for shard, account in self.accounts.items()}
        if self.limit == 0:
            for account in self.accounts.values():
                account.intended = dict.fromkeys(usable, -1) if self._listens(account, now) else {}
        else:
            wanted = set(usable)
            kept: list[Slots] = []
            for account in self.accounts.values():
                intended = account.intended
                kept.append({i: n for i in coming if (n := intended.get(i, 0)) > 0})
                if not intended.keys() <= wanted or 0 in intended.values():
                    account.intended = {i: n for i, n in intended.items() if n > 0 and i in wanted}
            frozen = inherited if now < self.frozen_until else ()
            self._share(usable, frozen, now, dict(zip(self.accounts, kept, strict=True)))
            if coming:
                for account, promises in zip(self.accounts.values(), kept, strict=True):
                    account.intended.update(promises)
                self._promise(coming, frozen)
        return [
            shard
            for shard, account in self.accounts.items()
            if account.intended != before[shard] and account.left_at is None and account.joined
        ]

    def knows(self, shard: FunctionID, now: float) -> bool:
        """It has obeyed all that is intended for it, or is about to: a Grant would tell it nothing.

        Not before it has obeyed one of this account. From then on it refuses older ones: what an account that has
        ended gave it may still be under way to it, and an answer renews whatever it has.
        """
        account = self.accounts.get(shard)
        if account is None or not account.acked_seq or account.told != ("", False):
            return False
        if account.unacked:
            return now - account.sent_at < ON_ITS_WAY_S and account.unacked[-1][1] == account.intended
        if self.limit == 0 and account.held:  # what it has forgotten by itself it doesn't say
            return False
        return account.intended == account.acked

    def trim(
        self, instances: Iterable[InstanceID], own: Mapping[FunctionID, Mapping[InstanceID, int]]
    ) -> None:
        """Where more is intended than there is to give: what shards have beyond their own goes first."""
        for instance in instances:
            excess = self.reserved.get(instance, 0) - self.limit
            excess += sum(account.intended.get(instance, 0) for account in self.accounts.values())
            for spared in (own, {}):
                for shard, account in sorted(self.accounts.items()):
                    if excess <= 0:
                        break
                    has = account.intended.get(instance, 0)
                    cut = min(excess, has - spared.get(shard, {}).get(instance, 0))
                    if cut > 0:
                        account.intended[instance] = has - cut
                        excess -= cut

    def sent(self, shard: FunctionID, seq: int, now: float) -> None:
        """A Grant of what is intended goes out."""
        account = self.accounts[shard]
        account.unacked.append((seq, dict(account.intended)))
        account.sent_at = now
        while len(account.unacked) > KEPT_GRANTS:
            (_, first), (seq, second) = account.unacked[0], account.unacked[1]
            merged = {i: max(first.get(i, 0), second.get(i, 0)) for i in {*first, *second}}
            account.unacked[:2] = [(seq, merged)]

    def unheard(self, now: float, after_s: float) -> list[FunctionID]:
        """Shards in the view that haven't acknowledged a Grant that they ought to have by now."""
        return [
            shard
            for shard, account in self.accounts.items()
            if account.unacked and account.left_at is None and now - account.sent_at > after_s
        ]

    def listening(self, now: float) -> list[FunctionID]:
        """Shards that have requests of the revision or slots for them, and obey this home."""
        accounts = sorted(self.accounts.items())
        return [s for s, a in accounts if a.joined and (a.need or a.total) and self._listens(a, now)]

    def check(self, instances: Sequence[InstanceID]) -> None:
        if self.limit:
            for instance in instances:
                assert self.free(instance) >= 0, f"{instance}: more than {self.limit} slots are given out"

    # --- inside

    def _listens(self, account: Account, now: float) -> bool:
        return account.left_at is None and now - account.heard_at < QUIET_S

    def _share(
        self,
        usable: Sequence[InstanceID],
        frozen: Container[InstanceID],
        now: float,
        promised: Mapping[FunctionID, Slots],
    ) -> None:
        shards = [s for s, a in sorted(self.accounts.items()) if a.left_at is None and a.joined]
        for shard in shards:
            self.accounts[shard].count()
        waiting = [s for s in shards if self.accounts[s].lacks > 0]
        if not waiting and not any(self.accounts[s].prefers for s in shards):
            return
        free = self._free(usable, frozen)
        if len(shards) == 1:
            self._share_alone(self.accounts[shards[0]], free)
            return
        turn = int(now / TURN_S) % len(shards)
        order = [*shards[turn:], *shards[:turn]]
        capacity = self.limit * len(usable)
        if self.reserved:
            capacity -= sum(self.reserved.get(i, 0) for i in usable)
        fair = fair_shares({s: self.accounts[s].need for s in shards}, capacity, order)

        def below_fair() -> dict[FunctionID, int]:
            accounts = ((s, self.accounts[s]) for s in order)
            return {s: max(0, min(a.lacks, fair[s] - a.occupied)) for s, a in accounts}

        for shard, count in self._oldest(order, sum(free.values())).items():
            self._give(self.accounts[shard], count, free)
        for lacks in (below_fair, lambda: {s: max(0, self.accounts[s].lacks) for s in order}):
            for shard, count in fair_shares(lacks(), sum(free.values()), order).items():
                self._give(self.accounts[shard], count, free)
        spare = sum(free.values()) // (2 * len(shards))
        for shard in waiting:  # the next requests then need no word with home
            self._give(self.accounts[shard], min(spare, self.accounts[shard].need), free)
        for shard in order:  # also beside idle ones of others, which are given back when they stay idle
            self._prefer(self.accounts[shard], sum(free.values()), free)
        lacks_for_long = {s: max(0, n - sum(promised[s].values())) for s, n in below_fair().items()}
        self._take_back(lacks_for_long, fair, usable, order, now)

    def _promise(self, coming: Sequence[InstanceID], frozen: Container[InstanceID]) -> None:
        """To requests for which no slot is free. What is promised stays so, also where another slot came sooner."""
        shards = [s for s, a in sorted(self.accounts.items()) if a.left_at is None and a.joined]
        for shard in shards:
            self.accounts[shard].count()
        if not any(self.accounts[s].lacks > 0 for s in shards):
            return
        free = self._free(coming, frozen)
        for shard, count in self._oldest(shards, sum(free.values())).items():
            self._spread(self.accounts[shard], count, free)
        lacks = {s: max(0, self.accounts[s].lacks) for s in shards}
        for shard, count in fair_shares(lacks, sum(free.values()), shards).items():
            self._spread(self.accounts[shard], count, free)

    def _share_alone(self, account: Account, free: Slots) -> None:
        """The same where there is nobody to share with."""
        lacks = account.lacks
        self._give(account, lacks, free)
        if lacks > 0 and free:
            self._give(account, min(sum(free.values()) // 2, account.need), free)
        if account.prefers:
            self._prefer(account, sum(free.values()), free)

    def _oldest(self, order: Sequence[FunctionID], count: int) -> dict[FunctionID, int]:
        """How many of the `count` requests that have waited longest each shard has; of two alike: in turn."""
        ranked: list[list[tuple[float, int, int]]] = []
        for k, shard in enumerate(order):
            account = self.accounts[shard]
            served = len(account.waiting) - len(account.lacking)
            ranked.append([(at, n, k) for n, at in enumerate(account.lacking, served)])
        known = merge(*ranked)
        return Counter(order[k] for _, _, k in islice(known, count))

    def _take_back(
        self,
        lacks: Mapping[FunctionID, int],
        fair: Mapping[FunctionID, int],
        usable: Sequence[InstanceID],
        order: Sequence[FunctionID],
        now: float,
    ) -> None:
        """What shards have beyond their fair share, as far as others lack it and it isn't on its way already.

        A slot that is idle and waits for a request of its shard stays, and one that is in use does where the shard's
        own requests have waited longer than those of others.
        """
        lacking = sum(lacks.values())
        if not lacking:
            return
        there = set(usable)
        for account in self.accounts.values():  # on their way
            lacking -= sum(
                n - account.intended.get(i, 0) for i, n in account.bounds().items() if n > 0 and i in there
            )
        for shard in order:
            account = self.accounts[shard]
            over = min(account.total - fair[shard], lacking)
            if over > 0:
                others = (self.accounts[s].lacking for s, n in lacks.items() if n and s != shard)
                lacking -= self._take(account, over, min((at[0] for at in others if at), default=now))

    def _take(self, account: Account, most: int, since: float) -> int:
        """How many slots it has less now; others lack them for requests that wait since then at the earliest.

        The instance with most idle slots gives first.
        """
        older = sum(at <= since for at in account.waiting)
        if older > len(account.waiting) - len(account.lacking):
            return 0
        intended = account.intended
        idle = {i: n - account.uses.get(i, 0) for i, n in intended.items()}
        spare = sum(n for n in idle.values() if n > 0)
        spare -= min(spare, older)  # these go there in a moment
        left = most
        for instance in sorted(idle, key=lambda i: (idle[i], i), reverse=True):
            if idle[instance] > 0:
                take = min(left, idle[instance], spare)
                spare -= take
            else:
                take = min(left, intended[instance])
            left -= take
            if take:
                account.give(instance, -take)
        return most - left

    def _give(self, account: Account, count: int, free: dict[InstanceID, int]) -> None:
        """What it prefers, and spread over the instances with most free slots; `free` is what is left."""
        if count <= 0 or not free:
            return
        if account.prefers:
            count -= self._prefer(account, count, free)
        shunned = {i: free.pop(i) for i in account.shuns if i in free}
        self._spread(account, count, free)
        free.update(shunned)

    def _prefer(self, account: Account, most: int, free: dict[InstanceID, int]) -> int:
        """How many slots it got of those instances that it prefers."""
        given = 0
        for instance, count in account.prefers.items():
            idle = max(0, account.intended.get(instance, 0) - account.uses.get(instance, 0))
            step = min(count - idle, free.get(instance, 0), most - given)
            if step > 0:
                account.give(instance, step)
                free[instance] -= step
                if not free[instance]:
                    del free[instance]
                given += step
        return given

    def _spread(self, account: Account, count: int, free: dict[InstanceID, int]) -> None:
        if count <= 0:
            return
        heap = [(-n, k, i) for k, (i, n) in enumerate(free.items())]
        heapify(heap)
        while count > 0 and heap:
            negative, k, instance = heappop(heap)
            ahead = heap[0][0] - negative if heap else count
            step = min(count, -negative, max(1, ahead))
            account.give(instance, step)
            free[instance] -= step
            if free[instance]:
                heappush(heap, (negative + step, k, instance))
            else:
                del free[instance]
            count -= step


def fair_shares(
    needs: Mapping[FunctionID, int], capacity: int, order: Sequence[FunctionID]
) -> dict[FunctionID, int]:
    """Max-min: nobody gets more than it needs, nobody less than an equal share of what is left.

    What can't be split evenly goes to the first of `order`.
    """
    shares = dict.fromkeys(needs, 0)
    open_ = [s for s in order if needs.get(s, 0) > 0]
    while open_ and capacity > 0:
        share, rest = divmod(capacity, len(open_))
        full = [s for s in open_ if needs[s] - shares[s] <= share]
        if not full:
            for k, shard in enumerate(open_):
                shares[shard] += share + (k < rest)
            break
        for shard in full:
            capacity -= needs[shard] - shares[shard]
            shares[shard] = needs[shard]
        open_ = [s for s in open_ if s not in full]
    return shares
