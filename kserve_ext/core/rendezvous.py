"""Who of the members owns a key: the one whose hash with the key is highest (rendezvous hashing).

Everyone who knows the same members answers the same, on any machine and in any release. When a member goes,
only its keys move, to the next in each key's own order; when one comes, it takes only what it wins.
Shares are even in the mean, not bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeVar

from kserve_ext.core.ids import FunctionID, NodeID

M = TypeVar("M", bound=str)


def owner(key: str, members: Iterable[M]) -> M | None:
    """The member that owns `key`, None if there is none."""
    return max(members, key=lambda member: _rank(key, member), default=None)


def ranked(key: str, members: Iterable[M]) -> list[M]:
    """All members, the owner first, each followed by the one that takes over from it."""
    return sorted(members, key=lambda member: _rank(key, member), reverse=True)


def partition(
    nodes: Iterable[NodeID], functions: Sequence[FunctionID]
) -> dict[FunctionID, tuple[NodeID, ...]]:
    """The nodes of each function, in order of id. A function without nodes is there too, with none."""
    owned: dict[FunctionID, list[NodeID]] = {function: [] for function in sorted(functions)}
    for node in sorted(nodes):
        function = owner(node, functions)
        if function is not None:
            owned[function].append(node)
    return {function: tuple(mine) for function, mine in owned.items()}


def _rank(key: str, member: str) -> tuple[bytes, str]:
    """The member's name settles ties, so that the order of `members` never matters."""
    digest = blake2b(member.encode(), digest_size=8)
    digest.update(b"\0")
    digest.update(key.encode())
    return digest.digest(), member
