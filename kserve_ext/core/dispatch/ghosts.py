"""Shards that left the view so lately that they may still be alive, and use what a home gave them: ghosts.

A ghost of this machine is *seen*: it is one until its process has ended, since nobody listens where it did. Its
connections to instances have ended then, too, and with them their work for it. Until then it may only be paused, and
its requests go on. Of another machine's refusal it isn't known who says so (a firewall may): leases end by time.
A ghost that is back in the view is none.

Who left before this process came is in its first view; after that it sees for itself, and is told again lest it
missed a view. Of those whom the controller itself doesn't know (UNKNOWN) nobody sees the end: time has to pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kserve_ext.core.dispatch.facts import LEASE_TTL_S, SEEN_TTL_S
from kserve_ext.core.facts import UNKNOWN, Left, Member
from kserve_ext.core.ids import FunctionID


class Ghost(NamedTuple):
    since: float
    addr: str
    incarnation: int = 0


class Ghosts:
    """As one process knows them."""

    def __init__(self, addr: str) -> None:
        """`addr`: of this process."""
        self._addr = addr
        #: the view's shards
        self._there: dict[FunctionID, Member] = {}
        self._first = True
        self.left: dict[FunctionID, Ghost] = {}
        #: these have ended, or their time has, although the view may still name them
        self._over: set[tuple[FunctionID, int]] = set()

    def view(self, members: Iterable[Member], left: Iterable[Left], now: float) -> None:
        """`members`: Dispatch functions; one that drains has work, and isn't asked. `left`: who the view names so."""
        all_members = {m.id: m for m in members}
        there = {name: m for name, m in all_members.items() if not m.draining}
        named = {x.id: Ghost(now - x.age_s, x.addr, x.incarnation) for x in left if x.kind == "dispatch"}
        named |= {name: _since(now, m) for name, m in all_members.items() if m.draining}
        if not self._first:
            named.pop(UNKNOWN, None)
        gone = {name: _since(now, m) for name, m in self._there.items() if name not in there}
        self._over &= {(name, ghost.incarnation) for name, ghost in named.items()}
        known = self.left | gone
        news = {name: ghost for name, ghost in named.items() if self._is_news(name, ghost, known, now)}
        self.left = {name: ghost for name, ghost in (known | news).items() if name not in there}
        self._there, self._first = there, False

    @property
    def seen(self) -> set[FunctionID]:
        """Those of which nothing is free before their end, as far as it is told; in the view, too."""
        there = {shard for shard, member in self._there.items() if same_machine(member.addr, self._addr)}
        return there | {shard for shard, ghost in self.left.items() if self._waits(ghost)}

    @property
    def asked(self) -> list[tuple[FunctionID, Ghost]]:
        """Those whose end is noticed, by asking."""
        return [(shard, ghost) for shard, ghost in self.left.items() if ghost.addr and self._waits(ghost)]

    def ended(self, shard: FunctionID, ghost: Ghost) -> bool:
        """Nobody listens any more where it did. Whether that is news of a ghost."""
        if self.left.get(shard) != ghost:
            return False
        self._forget(shard)
        return True

    def tick(self, now: float) -> list[FunctionID]:
        """Forgets those whose time is over; those of them whose end was waited for: it has come, seen or not."""
        late = [shard for shard, ghost in self.left.items() if self._is_late(ghost, now)]
        waited = [shard for shard in late if self._waits(self.left[shard])]
        for shard in late:
            self._forget(shard)
        return waited

    def _is_news(
        self, shard: FunctionID, ghost: Ghost, known: Mapping[FunctionID, Ghost], now: float
    ) -> bool:
        if self._is_late(ghost, now) or (shard, ghost.incarnation) in self._over:
            return False
        return shard not in known or known[shard].incarnation < ghost.incarnation

    def _is_late(self, ghost: Ghost, now: float) -> bool:
        return now - ghost.since >= (SEEN_TTL_S if self._waits(ghost) else LEASE_TTL_S)

    def _forget(self, shard: FunctionID) -> None:
        self._over.add((shard, self.left.pop(shard).incarnation))

    def _waits(self, ghost: Ghost) -> bool:
        return not ghost.addr or same_machine(ghost.addr, self._addr)


def _since(now: float, member: Member) -> Ghost:
    return Ghost(now, member.addr, member.incarnation)


def same_machine(one: str, other: str) -> bool:
    """By their addresses: where one refuses, the other knows that nobody is there."""
    return one.rpartition(":")[0] == other.rpartition(":")[0]
