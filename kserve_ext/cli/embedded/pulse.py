"""Whether a part that lives still turns its loop: the supervisor's liveness probe.

Each part touches its run file as long as its event loop runs (rpc/process.py). One that has stopped (SIGSTOP, a
deadlock, a loop that never yields) keeps its place, its port's share of connections included, until it is restarted.
Counts in the supervisor's own monotonic time and in changes only, so that no clock that jumps ends anything.
"""

from __future__ import annotations

from typing import Final

#: Many times what a loop takes on the busiest machine; Kubernetes' default is 30 s, too (period 10, three failures).
HUNG_S: Final = 30.0
LOOK_S: Final = 1.0


class Pulse:
    def __init__(self) -> None:
        self._stamp: int | None = None
        self._changes = 0
        self._changed_at = 0.0

    def quiet_s(self, stamp: int, now: float) -> float:
        """Seconds since `stamp` (when the file was touched) last changed; 0 for a part that doesn't touch it yet.

        The first stamp may be a predecessor's, the second one is the part's own word that it is ready.
        """
        if stamp != self._stamp:
            self._changes += self._stamp is not None
            self._stamp, self._changed_at = stamp, now
        return now - self._changed_at if self._changes > 1 else 0.0

    def rest(self, now: float) -> None:
        """Nobody was looking until now."""
        self._changed_at = now
