"""When a part that died is started again: at once, then ever later while it keeps dying young. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_S: Final = 0.05
LONGEST_S: Final = 5.0
#: A part that lived this long is taken to be well.
WELL_S: Final = 10.0


@dataclass(slots=True)
class Backoff:
    """Of one part."""

    pause_s: float = FIRST_S
    restarts: int = 0

    def died(self, started: float, now: float) -> float:
        """Seconds until it is to be started again."""
        if now - started >= WELL_S:
            self.pause_s = FIRST_S
        pause = self.pause_s
        self.pause_s = min(LONGEST_S, pause * 3)
        self.restarts += 1
        return pause
