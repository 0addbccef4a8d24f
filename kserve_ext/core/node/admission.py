"""What one node may run: a ledger of its declared capacity, and of who holds which part of it.

Nothing is over-committed: an admission that does not fit is refused with the resource that is short. Whole GPUs
are handed out by device index, so that two instances never see the same one. Only processes that already run
(an agent that comes back finds them) are entered without asking, and then nothing is free until they are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kserve_ext.core.facts import Resources

_NOTHING = Resources()


class Held(NamedTuple):
    """One holder's part."""

    needs: Resources
    devices: tuple[int, ...]


class Ledger:
    """Holders are named by whoever asks: an instance's id, or a slot's name."""

    def __init__(self, capacity: Resources, devices: Sequence[int] | None = None) -> None:
        """`devices` are the indices of the GPUs; by default 0, 1, ..."""
        self.capacity = capacity
        self.devices = tuple(range(capacity.gpus)) if devices is None else tuple(devices)
        if len(set(self.devices)) != capacity.gpus:
            raise ValueError(
                f"gpus: capacity says {capacity.gpus}, but the device indices are {list(self.devices)}; "
                "name each device once"
            )
        self._held: dict[str, Held] = {}
        #: capacity minus what is held; negative only while found processes exceed a capacity lowered since
        self._left = capacity

    @property
    def free(self) -> Resources:
        left = self._left
        return left if min(left) >= 0 else left.most(_NOTHING)

    def holds(self, holder: str) -> bool:
        return holder in self._held

    def held(self, holder: str) -> Held:
        return self._held[holder]

    def admit(self, holder: str, needs: Resources) -> str:
        """Takes `needs` for `holder`: "" when done, else what is short (and then nothing is taken)."""
        assert holder not in self._held, f"{holder} is admitted twice"
        if not needs.fits(self.free):
            return needs.short_of(self.free)
        self._enter(holder, Held(needs, self._unused(needs.gpus) if needs.gpus else ()))
        return ""

    def adopt(self, holder: str, held: Held) -> None:
        """Enters what already runs, whether it fits or not."""
        assert holder not in self._held, f"{holder} is adopted twice"
        self._enter(holder, held)

    def release(self, holder: str) -> None:
        """Gives back what `holder` has. It must have it: a second release is a bug of the caller."""
        self._left = self._left.plus(self._held.pop(holder).needs)

    def check(self) -> None:
        """The books balance, and no device has two holders."""
        left = self.capacity
        devices: list[int] = []
        for held in self._held.values():
            left = left.minus(held.needs)
            devices += held.devices
        assert left == self._left, f"{self._left} is left by the books, {left} by what is held"
        assert len(devices) == len(set(devices)), f"a device has two holders: {sorted(devices)}"

    def _unused(self, count: int) -> tuple[int, ...]:
        used = {device for held in self._held.values() for device in held.devices}
        return tuple([device for device in self.devices if device not in used][:count])

    def _enter(self, holder: str, held: Held) -> None:
        self._held[holder] = held
        self._left = self._left.minus(held.needs)
