"""The receiver's account of one transfer: which rows are still to come, and which blocks must not be used.

A row is one block of one layer (kv_transfer.py). Whoever sends may be wrong: what isn't expected must not be written.
Pure: knows no bytes, peers or time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class LandingPlan:
    """Of the blocks `targets`, each in `layers` layers."""

    __slots__ = ("_bad", "_left", "_rows")

    def __init__(self, layers: int, targets: Sequence[int]) -> None:
        self._left = dict.fromkeys(targets, (1 << layers) - 1)  # block -> layers still to come, one bit each
        self._rows = layers * len(self._left)  # still to come
        self._bad: set[int] = set()

    def expects(self, layer: int, target: int, count: int) -> bool:
        """Whether exactly these blocks of this layer are still to come: anything else must not be written."""
        return count > 0 and self.expects_all(layer, range(target, target + count))

    def expects_all(self, layer: int, targets: Sequence[int]) -> bool:
        """The same of blocks anywhere."""
        left = self._left
        return all(left.get(at, 0) >> layer & 1 for at in targets)

    def landed(self, layer: int, target: int, count: int, bad: Iterable[int] = ()) -> None:
        """They are expected, and written now; of them, the blocks `bad` are not what was sent."""
        self.landed_all(layer, range(target, target + count), bad)

    def landed_all(self, layer: int, targets: Sequence[int], bad: Iterable[int] = ()) -> None:
        bit = 1 << layer
        for block in targets:
            if self._left[block] & bit:
                self._left[block] ^= bit
                self._rows -= 1
        self._bad.update(bad)

    @property
    def whole(self) -> bool:
        return not self._bad and not self._rows

    def broken_blocks(self) -> set[int]:
        """Blocks that must not be used."""
        return self._bad | {block for block, layers in self._left.items() if layers}
