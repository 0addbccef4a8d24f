"""How many standby pods a pool should have: filled behind a burst, emptied when nobody asks, slower after failures.

What counts is who can be taken, or can soon. A pod that has a revision is its revision's affair, and is made up for
here as soon as it is taken, but not before the burst that took it is over: what stands by is for the next one.
Remembers only since when something is so; what there is, it is told each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from kserve_ext.core.backoff import pause_s
from kserve_ext.core.token_bucket import TokenBucket

#: Pods a second that a pool is refilled by, and at once.
RATE: Final = 4.0
BURST: Final = 8
#: A refill waits for the end of a burst, but no longer.
BEHIND_S: Final = 20.0
#: What is too much is kept for so long: pods come back, revisions are replaced.
SURPLUS_S: Final = 10.0
SETBACK_S: Final = (2.0, 300.0)
#: A pod that is no slot after so long can't become one. Images may take long; what isn't scheduled doesn't count.
WARM_S: Final = 900.0
#: What stands before the reason in the words about a Lack.
NOT_UP: Final = "comes up: "

#: coming: will be a slot; ready: can be taken; busy: has a revision or its labels; failed: its process has ended, or
#: can't serve; used up: likewise, but it had served; leaving: is being deleted; stranded: its node gets nothing new.
State = Literal["coming", "ready", "busy", "failed", "used up", "leaving", "stranded"]


class Member(NamedTuple):
    name: str
    uid: str
    state: State
    made_at: float
    scheduled: bool = True
    reason: str = ""


class Lack(NamedTuple):
    """Fewer can be taken than there should be, and it isn't only that the next are on their way."""

    why: str
    none: bool  # can be taken
    busy: bool  # some have a revision
    failing: bool = False  # `why` is of one that ended, or could not be made; else of one that waits

    @property
    def words(self) -> str:
        if not self.none:
            return f"it has fewer standby pods than it asks for, as no other {NOT_UP}{self.why}"
        if self.busy:
            return f"its standby pods are in use, and no other {NOT_UP}{self.why}"
        return f"has no effect yet, as none of its standby pods {NOT_UP}{self.why}"

    @property
    def amiss(self) -> bool:
        """A pod that waits until there is room again beside those in use is as it should be."""
        return self.failing or not self.busy


class Change(NamedTuple):
    create: int = 0
    delete: tuple[tuple[str, str], ...] = ()  # uid, and why
    short: int = 0  # that could be taken back
    recheck_s: float | None = None


@dataclass(slots=True)
class Pool:
    _bucket: TokenBucket = field(default_factory=lambda: TokenBucket(RATE, BURST))
    failures: int = 0
    reason: str = ""  # of the last failure, until there are as many as there should be
    _retry_at: float = 0.0
    _short_since: float | None = None
    _surplus_since: float | None = None
    _counted: set[str] = field(default_factory=set)
    #: Made, and not seen yet: when.
    _made: dict[str, float] = field(default_factory=dict)
    #: Were there at the last failure, and say nothing of whether pods come up since.
    _before: set[str] = field(default_factory=set)
    _there: set[str] = field(default_factory=set)

    def made(self, uid: str, now: float) -> None:
        """The API server has it; the informer will tell of it."""
        self._made[uid] = now
        if now < self._retry_at:  # one of those that were asked for together has failed
            self._before.add(uid)

    def refused(self, reason: str, now: float) -> None:
        """The API server wouldn't have such a pod."""
        self._fail(f"refused by the API server: {reason}", now)

    def unwanted(self, reason: str, now: float) -> None:
        """Such a pod would do harm, and isn't made."""
        self._fail(reason, now)

    def decide(
        self, size: int, members: Iterable[Member], busy: bool, now: float, hold: bool = False
    ) -> Change:
        """`size`: how many there should be that can be taken; `busy`: a burst is under way; `hold`: no more now."""
        members = list(members)
        known = {member.uid for member in members}
        self._made = {uid: at for uid, at in self._made.items() if uid not in known and now - at < 30.0}
        self._there = known
        self._before &= known | self._made.keys()
        delete = self._ended(members, now)
        coming = [m for m in members if m.state == "coming"]
        ready = [m for m in members if m.state == "ready"]
        if any(m.uid not in self._before for m in members if m.state in ("ready", "busy")):
            self.failures, self.reason = 0, ""
        elif len(ready) >= size:
            self.reason = ""
        for member in coming:
            if member.scheduled and now - member.made_at >= WARM_S:
                why = f"no slot after {WARM_S:.0f} s: {member.reason or 'see its log'}"
                delete.append((member.uid, why))
                self._fail(why, now)
        gone = {uid for uid, _ in delete}
        coming = [m for m in coming if m.uid not in gone]
        there = len(coming) + len(ready) + len(self._made)
        create, wait_s = self._refill(size - there, busy, now) if not hold else (0, None)
        if len(ready) >= size:  # until then there is nothing better, should the node be opened again
            delete += [(m.uid, m.reason) for m in members if m.state == "stranded"]
        surplus, surplus_wait_s = self._surplus(size, coming, ready, there, now)
        waits = [s for s in (wait_s, surplus_wait_s) if s is not None]
        return Change(
            create,
            (*delete, *surplus),
            max(0, size - len(ready)),
            min(waits) if waits else None,
        )

    # --- inside

    def _ended(self, members: list[Member], now: float) -> list[tuple[str, str]]:
        found = []
        for member in members:
            if member.state not in ("failed", "used up"):
                continue
            found.append((member.uid, member.reason or "its process has ended"))
            if member.state == "failed" and member.uid not in self._counted:
                self._counted.add(member.uid)
                self._fail(member.reason, now)
        self._counted &= {member.uid for member in members}
        return found

    def _fail(self, reason: str, now: float) -> None:
        self.failures += 1
        self.reason = reason
        self._before = self._there | self._made.keys()
        self._retry_at = now + pause_s(self.failures, *SETBACK_S, 1.0)

    def _refill(self, short: int, busy: bool, now: float) -> tuple[int, float | None]:
        """How many to make now; in how many seconds to look again."""
        if short <= 0:
            self._short_since = None
            return 0, None
        if self._short_since is None:
            self._short_since = now
        if now < self._retry_at:
            return 0, self._retry_at - now
        if busy and now < self._short_since + BEHIND_S:
            return 0, 1.0
        made = 0
        while made < short:
            wait_s = self._bucket.take_now(now)
            if wait_s > 0:
                return made, wait_s
            made += 1
        return made, None

    def _surplus(
        self, size: int, coming: list[Member], ready: list[Member], there: int, now: float
    ) -> tuple[list[tuple[str, str]], float | None]:
        if there <= size:
            self._surplus_since = None
            return [], None
        if self._surplus_since is None:
            self._surplus_since = now
        wait_s = self._surplus_since + SURPLUS_S - now
        if wait_s > 0:
            return [], wait_s
        youngest = [*sorted(coming, key=lambda m: -m.made_at), *sorted(ready, key=lambda m: -m.made_at)]
        why = "nobody asks for its pool" if size == 0 else f"its pool has {there}, and is to have {size}"
        return [(member.uid, why) for member in youngest[: there - size]], None
