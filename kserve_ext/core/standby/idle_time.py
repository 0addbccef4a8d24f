"""GPU-seconds that slots of a node have stood by, by pool: what a pool costs while nobody comes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from kserve_ext.core.standby.facts import Slot, SlotState

#: Pools that have stood by; beyond that those go that have no slots, the oldest first.
KEEP_POOLS: Final = 256
#: States in which nobody's work is done with a slot's GPUs.
IDLE: Final[frozenset[SlotState]] = frozenset(("warming", "ready"))


class IdleTime:
    def __init__(self) -> None:
        self._gpu_s: OrderedDict[str, float] = OrderedDict()

    def count(self, slot: Slot, now: float, slots: Iterable[Slot]) -> None:
        """A slot's state is over; `slots`: all that there are."""
        idle_s = _idle_s(slot, now)
        if not idle_s:
            return
        self._gpu_s[slot.pool] = self._gpu_s.get(slot.pool, 0.0) + idle_s
        self._gpu_s.move_to_end(slot.pool)
        if len(self._gpu_s) > KEEP_POOLS:
            here = {slot.pool for slot in slots}
            gone = next((pool for pool in self._gpu_s if pool not in here), "")
            self._gpu_s.pop(gone, None)

    def until(self, now: float, slots: Iterable[Slot]) -> dict[str, float]:
        """With what these have stood by in the state that they are in."""
        found = dict(self._gpu_s)
        for slot in slots:
            found[slot.pool] = found.get(slot.pool, 0.0) + _idle_s(slot, now)
        return found


def _idle_s(slot: Slot, now: float) -> float:
    return slot.gpus * (now - slot.since) if slot.gpus and slot.state in IDLE else 0.0
