"""Who of the members owns a key: the one whose hash with the key is highest (rendezvous hashing).

Everyone who knows the same members answers the same, on any machine and in any release. When a member goes,
only its keys move, to the next in each key's own order; when one comes, it takes only what it wins.
Shares are even in the mean, not bounded; partitions.py bounds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, Generic, TypeVar

M = TypeVar("M", bound=str)
MOST_KEYS: Final = 200_000


def owner(key: str, members: Iterable[M]) -> M | None:
    """The member that owns `key`, None if there is none."""
    return max(members, key=lambda member: _rank(key, member), default=None)


def ranked(key: str, members: Iterable[M]) -> list[M]:
    """All members, the owner first, each followed by the one that takes over from it."""
    return sorted(members, key=lambda member: _rank(key, member), reverse=True)


class Ranks(Generic[M]):
    """The same order for many keys: each member's half of the hash is computed once."""

    def __init__(self, members: Iterable[M]) -> None:
        self._begun = {member: _begun(member) for member in members}

    def rank(self, key: str, member: M) -> tuple[bytes, str]:
        """Higher goes first."""
        digest = self._begun[member].copy()
        digest.update(key.encode())
        return digest.digest(), member

    def first(self, key: str, among: Iterable[M]) -> M:
        """The one of these members, at least one, that comes first for `key`."""
        return max(among, key=lambda member: self.rank(key, member))


class Owners(Generic[M]):
    """owner() of many keys, kept while members come and go: each newcomer costs a hash a key.

    It remembers MOST_KEYS, and begins anew when there are more.
    """

    def __init__(self, members: Iterable[M] = ()) -> None:
        self._ranks = Ranks(members)
        self._members = frozenset(members)
        self._owners: dict[str, M] = {}

    def of(self, key: str) -> M | None:
        found = self._owners.get(key)
        if found is None and self._members:
            if len(self._owners) >= MOST_KEYS:
                self._owners.clear()
            found = self._owners[key] = self._ranks.first(key, self._members)
        return found

    def change(self, members: Iterable[M]) -> bool:
        """These are the members from now on; False: they were before."""
        now = frozenset(members)
        if now == self._members:
            return False
        come, stay = now - self._members, now & self._members
        self._ranks, self._members = Ranks(now), now
        for key, owner in list(self._owners.items()):
            if owner not in stay:
                del self._owners[key]
            elif come:
                self._owners[key] = self._ranks.first(key, (owner, *come))
        return True


def _rank(key: str, member: str) -> tuple[bytes, str]:
    """The member's name settles ties, so that the order of `members` never matters."""
    digest = _begun(member)
    digest.update(key.encode())
    return digest.digest(), member


def _begun(member: str) -> blake2b:
    digest = blake2b(member.encode(), digest_size=8)
    digest.update(b"\0")
    return digest
