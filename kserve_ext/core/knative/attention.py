"""Time as far as this process was there to see it: what averages of load are kept by.

Whoever is stopped, starved of CPU or suspended hears of no load meanwhile, which is not the same as no load. So this
clock stands still while its reader was away; and for a moment longer, in which what has piled up in sockets comes in
all at once and belongs to no second: that is not to be recorded. It goes on in the next second after that in which it
stood, which may have been recorded already. A step of the wall clock looks the same and is treated the same.
Knative's autoscaler counts such a gap as zeros. Never reads a clock: `wall` is unix time.
"""

from __future__ import annotations

import math
from typing import Final

#: A reader that looks ten times a second and is this late has been away.
AWAY_S: Final = 2.0
#: What has piled up is read within this.
CATCH_UP_S: Final = 1.0


class Attention:
    __slots__ = ("_last", "_stands_at", "_until", "missed_s")

    def __init__(self) -> None:
        #: whole seconds, so that seconds begin here when they begin on the wall
        self.missed_s = 0
        self._last: float | None = None
        #: while it stands still: where, and the wall time until then
        self._stands_at: float | None = None
        self._until = 0.0

    def now(self, wall: float) -> float:
        """To be called several times a second, whether or not anybody wants to know."""
        last, self._last = self._last, wall
        if last is not None and not 0 <= wall - last <= AWAY_S:
            self._return(last, wall)
        if self._stands_at is None:
            return wall - self.missed_s
        if wall < self._until:
            return self._stands_at
        self.missed_s = round(self._until - self._stands_at) - 1
        self._stands_at = None
        return wall - self.missed_s

    @property
    def catching_up(self) -> bool:
        return self._stands_at is not None

    def _return(self, last: float, wall: float) -> None:
        if self._stands_at is None:
            self._stands_at = last - self.missed_s
        self._until = self._stands_at + math.ceil(wall + CATCH_UP_S - self._stands_at)
