"""Whether a process that lives still turns its loop: a liveness probe by the time of a file.

A part of an embedded cluster touches its run file, an instance its `pulse`, as long as their event loops run. One
that has stopped (SIGSTOP, a deadlock, a loop that never yields) keeps its place, its port's share of connections
included, until whoever watches it, supervisor or node agent, ends it. Counts in the watcher's own monotonic time and
in changes only, so that no clock that jumps ends anything.
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
        """Seconds since `stamp` (when the file was touched) last changed; 0 for a process that doesn't touch it yet.

        The first stamp may be a predecessor's, the second one is the process's own word that it is ready.
        """
        if stamp != self._stamp:
            self._changes += self._stamp is not None
            self._stamp, self._changed_at = stamp, now
        return now - self._changed_at if self.beats else 0.0

    @property
    def beats(self) -> bool:
        """It touches the file, and has more than once."""
        return self._changes > 1

    def rest(self, now: float) -> None:
        """Nobody was looking until now."""
        self._changed_at = now
