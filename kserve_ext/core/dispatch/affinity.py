"""Which instance a request prefers: that of its session, or that which has seen the beginning of its prompt.

A session goes to the first instance in its own rendezvous order, so that all shards choose alike without a word,
and only the sessions of an instance that goes move. A prompt is cut into blocks whose hashes are chained; a tree of
bounded size remembers which instance last had which, and what no instance has had goes by the rendezvous order of
its first block. Both are sticky until saturated: an instance that is much busier than the least busy one is passed
over. Pure; hashes are stable across processes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from kserve_ext.core import rendezvous
from kserve_ext.core.ids import InstanceID

BLOCK_BYTES: Final = 512  # about 128 tokens
MOST_BLOCKS: Final = 64
READ_BYTES: Final = BLOCK_BYTES * MOST_BLOCKS
KEPT_BLOCKS: Final = 65_536

#: A preferred instance may have so many requests more in flight than the least busy one, or half as many again.
AHEAD: Final = 4
AHEAD_SHARE: Final = 0.5


class Keys(NamedTuple):
    """What a request is recognised by; both empty: nothing, any instance will do."""

    session: str = ""
    blocks: tuple[int, ...] = ()


class Choice(NamedTuple):
    instance: InstanceID
    why: str  # for a person


class PrefixTree:
    """Blocks by their chained hash: one names its whole prefix, so that a flat table is the tree."""

    def __init__(self, kept: int = KEPT_BLOCKS) -> None:
        self._kept = kept
        self._last: OrderedDict[int, InstanceID] = OrderedDict()

    def note(self, blocks: Sequence[int], instance: InstanceID) -> None:
        """A prompt went there. The deepest blocks are forgotten first."""
        for block in reversed(blocks):
            self._last[block] = instance
            self._last.move_to_end(block)
        while len(self._last) > self._kept:
            self._last.popitem(last=False)

    def depths(self, blocks: Sequence[int]) -> dict[InstanceID, int]:
        """How many of the first blocks each instance may hold, as far as is remembered."""
        found: dict[InstanceID, int] = {}
        for depth, block in enumerate(blocks, 1):
            instance = self._last.get(block)
            if instance is not None:
                found[instance] = depth
        return found

    def __len__(self) -> int:
        return len(self._last)


def saturated(load: int, least: int) -> bool:
    return load > least + max(AHEAD, least * AHEAD_SHARE)


def choose(keys: Keys, loads: Mapping[InstanceID, int], tree: PrefixTree) -> Choice | None:
    """`loads`: requests in flight of all that could take it. None: it prefers none, or there is none."""
    if not loads or not (keys.session or keys.blocks):
        return None
    least = min(loads.values())
    if keys.blocks:
        depths = tree.depths(keys.blocks)
        for instance in sorted(depths, key=lambda i: (-depths[i], i)):
            if instance in loads and not saturated(loads[instance], least):
                return Choice(instance, f"prefix: had {depths[instance]} of {len(keys.blocks)} blocks")
    key = f"session {keys.session}" if keys.session else f"prefix {keys.blocks[0]:x}"
    order = rendezvous.ranked(key, loads)
    chosen = next(i for i in order if not saturated(loads[i], least))
    word = "session" if keys.session else "prefix"
    if chosen == order[0]:
        return Choice(chosen, f"{word}: its first choice")
    return Choice(chosen, f"{word}: {order[0]} has {loads[order[0]]} in flight, the least busy {least}")


def prefix_blocks(data: bytes, seed: str = "") -> tuple[int, ...]:
    """Hashes of the whole blocks that `data` begins with. `seed`: whose prompts they are."""
    chain = blake2b(seed.encode(), digest_size=8)
    blocks: list[int] = []
    for start in range(0, min(len(data), READ_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        chain.update(data[start : start + BLOCK_BYTES])
        blocks.append(int.from_bytes(chain.copy().digest(), "big"))
    return tuple(blocks)
