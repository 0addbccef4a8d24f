"""How many instances a home may start when its process is behind, or was a moment ago; by its own ticks.

A tick that comes late has waited for all that was to be done before it. What a home knows is then as old: requests
have ended of which it hasn't heard, and those that are held wait for the process, not for instances. More instances
would be more work for it, and it would be behind for longer. So while it is behind its homes change no number of
instances, but that one starts where there is none; and what is missing when it has caught up is started slowly at
first, twice as fast each second as long as it keeps up and those who place them do, since each start is work that
comes later.
"""

from __future__ import annotations

from typing import Final

BEHIND_S: Final = 0.5
IN_TIME_S: Final = 0.1  # of one that may do more
#: starts a second of one process that has just caught up, and those from which on they aren't counted any more
FIRST_RATE: Final = 8.0
MOST_RATE: Final = 1000.0
_DOUBLE_S: Final = 1.0


class Lag:
    """Of one process; its homes share it."""

    def __init__(self) -> None:
        self.behind = False
        #: starts a second; 0 = they aren't counted
        self.rate = 0.0
        self._tokens = 0.0
        self._counted_at = self._double_at = 0.0
        #: asked for, and not answered when last counted or since
        self._asking = 0

    @property
    def counts(self) -> bool:
        """Starts are counted."""
        return self.rate > 0.0

    def ticked(self, due: float, now: float, asking: int = 0) -> None:
        """A tick that was due then comes now. `asking`: starts that aren't answered, where they are counted."""
        late, self._asking = now - due, asking
        self.behind = late > BEHIND_S
        if self.behind:
            self.rate, self._double_at = FIRST_RATE, now + _DOUBLE_S
            self._tokens, self._counted_at = 0.0, now
        elif late > IN_TIME_S or asking > self.rate / 2:
            self._double_at = now + _DOUBLE_S
        elif self.rate and now >= self._double_at:
            self.rate, self._double_at = 2 * self.rate, now + _DOUBLE_S
            if self.rate > MOST_RATE:
                self.rate = 0.0

    def allows(self, count: int, now: float) -> int:
        """How many of so many starts may begin now."""
        if not self.rate:
            return count
        if self.behind:
            return 0
        self._tokens = min(self.rate, self._tokens + (now - self._counted_at) * self.rate)
        self._counted_at = now
        return max(0, min(count, int(self._tokens), int(self.rate) - self._asking))

    def began(self, count: int) -> None:
        """As many as it allowed, or one more."""
        self._tokens -= count
        self._asking += count
