"""Calls that come again: an instance that was asked for is placed once, however often its call arrives.

Homes never ask for one id twice, so a call whose ids are known is the former one, sent again or late; what it is told
is what the former was told. Partitions do ask each other for one that another has refused, and a gang's reservation
that was released may be asked for again: only what is being placed, or was placed for good, is remembered.
"""

from __future__ import annotations

from typing import Final

from kserve_ext.core.ids import InstanceID, NodeID
from kserve_ext.core.schedule.facts import Place, Refusal
from kserve_ext.core.schedule.op import Op

#: placements remembered; a call that is late by more of them is refused by the node that it went to, if by any
KEEP: Final = 10_000
UNDER_WAY: Final = "its call came twice, and the first is under way"
#: an instance, or with over how many hops it came, if over any
Asked = InstanceID | tuple[InstanceID, int]


class Repeats:
    def __init__(self) -> None:
        self._under_way: set[Asked] = set()
        #: in the order of their answers
        self._placed: dict[Asked, Place] = {}

    def begins(self, op: Op) -> bool:
        """Whether anything of it is to be placed; what has been asked for before is answered in it."""
        hops = op.hops
        for instance in op.wanted:
            key = (instance, hops) if hops else instance
            if (place := self._placed.get(key)) is not None:
                op.placed[instance] = place
            elif key in self._under_way:
                op.refused[instance] = Refusal(instance, UNDER_WAY, NodeID("?"))
            else:
                self._under_way.add(key)
                continue
            op.repeated.add(instance)
        return len(op.repeated) < len(op.wanted)

    def ends(self, op: Op) -> None:
        """It is answered."""
        placed, hops = self._placed, op.hops
        for instance in op.wanted:
            if op.repeated and instance in op.repeated:
                continue
            key = (instance, hops) if hops else instance
            self._under_way.discard(key)
            if instance in op.placed and not op.reserve:
                placed[key] = op.placed[instance]
        while len(placed) > KEEP:
            del placed[next(iter(placed))]

    def __len__(self) -> int:
        return len(self._under_way) + len(self._placed)
