"""When a pod that is being deleted has drained: nobody has come for a while, then nothing is under way.

The quiet time begins anew with each request, probes not counted: load balancers learn late that the pod goes. In
Knative: pkg's network/handlers/drain.go.
"""

from __future__ import annotations


class Draining:
    __slots__ = ("_until", "quiet_s")

    def __init__(self, quiet_s: float, now: float) -> None:
        self.quiet_s = quiet_s
        self._until = now + quiet_s

    def came(self, now: float) -> None:
        """A request."""
        if now < self._until:
            self._until = now + self.quiet_s

    def left_s(self, now: float) -> float:
        """Until it is quiet, if nobody comes; 0 once it was."""
        return max(0.0, self._until - now)
