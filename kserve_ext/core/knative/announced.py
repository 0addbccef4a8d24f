"""Pods that a node's agent has announced: they serve, and the Endpoints don't say so yet.

An announcement counts for KEEP_S, or until the Endpoints call the pod ready: from then on they say whether it is
there. It is over before that when it is taken back, when the pod was listed and no longer is, and when a connection
failed and the pod doesn't answer a probe either. Reads no clock.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

#: Longest time from "it serves" to being listed: a scale, labels, a readiness probe, and the Endpoints. In a burst of
#: some hundred revisions Kubernetes' controllers need a minute for these, at the request rates that they come with.
KEEP_S: Final = 120.0


class Announced:
    def __init__(self) -> None:
        #: Until when each counts.
        self.until: dict[str, float] = {}
        self._listed: set[str] = set()

    def __contains__(self, addr: str) -> bool:
        return addr in self.until

    def add(self, addr: str, now: float) -> None:
        self.until[addr] = now + KEEP_S

    def drop(self, addr: str) -> None:
        self.until.pop(addr, None)
        self._listed.discard(addr)

    def observe(self, ready: AbstractSet[str], not_ready: AbstractSet[str]) -> None:
        """The Endpoints say so."""
        for addr in list(self.until):
            if addr in ready or (addr in self._listed and addr not in not_ready):
                self.drop(addr)
            elif addr in not_ready:
                self._listed.add(addr)

    def tick(self, now: float) -> None:
        for addr in [addr for addr, until in self.until.items() if now >= until]:
            self.drop(addr)

    @property
    def addrs(self) -> AbstractSet[str]:
        return self.until.keys()

    def due(self) -> float | None:
        return min(self.until.values(), default=None)
