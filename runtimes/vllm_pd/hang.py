"""Whether an engine that is busy still makes steps.

The engine's thread counts its turns (inproc.py), and says when it rests: nothing to do, nothing waits for it. One
that doesn't rest and doesn't count is in a step that does not end; a slow engine ends its steps, each after a while.
Decides only that; whoever asks ends the instance, so that its home starts another. Pure: times come from the caller.
"""

from __future__ import annotations

from typing import Final

LOOK_S: Final = 1.0
#: Looks further apart than this mean that this whole process was stopped.
_GAP_S: Final = 5.0


class Steps:
    def __init__(self, most_s: float) -> None:
        """`most_s`: longer than any step takes; 0 = never hung."""
        self._most_s = most_s
        self._turns = -1
        self._moved_at = 0.0
        self._looked_at = 0.0

    def hung(self, turns: int, at_rest: bool, now: float) -> bool:
        """To be asked every LOOK_S, with the engine's count so far."""
        if at_rest or turns != self._turns or now - self._looked_at > _GAP_S:
            self._turns, self._moved_at = turns, now
        self._looked_at = now
        return 0 < self._most_s < now - self._moved_at
