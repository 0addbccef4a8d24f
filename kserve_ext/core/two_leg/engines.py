"""Plain engines of one role: which takes the next leg, by its load and by how it has fared.

The least loaded of those that are well; between equals the one that was used longest ago. One that failed rests,
longer with each failure in a row; one whose health check fails is left alone until it passes. A check that is
late says that somebody is busy, the engine, the router or their machine: it takes some in a row, as it does with
the kubelet, to say that the engine is not well. Pure: `now` comes from the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from kserve_ext.core.backoff import pause_s

LEAST_REST_S: Final = 1.0
MOST_REST_S: Final = 30.0
#: In a row; a probe's failureThreshold.
LATE_CHECKS: Final = 3


class Engine:
    __slots__ = ("addr", "failures", "healthy", "late", "legs", "load", "rests_until", "used")

    def __init__(self, addr: str) -> None:
        self.addr = addr
        self.legs = 0  # under way
        self.load = 0  # sum of their weights
        self.healthy = True
        self.late = 0  # health checks in a row that nobody has answered in time
        self.failures = 0  # in a row
        self.rests_until = 0.0
        self.used = 0  # its last turn

    def well(self, now: float) -> bool:
        return self.healthy and now >= self.rests_until


class Engines:
    def __init__(self, addrs: Sequence[str]) -> None:
        #: By address, in the order given.
        self.all = {addr: Engine(addr) for addr in addrs}
        self._turn = 0

    def pick(self, now: float, but: Collection[str] = (), *, unwell: bool = False) -> str:
        """ "" if there is none. `unwell`: rather one that is not well than none."""
        found = [engine for engine in self.all.values() if engine.addr not in but]
        if not unwell:
            found = [engine for engine in found if engine.well(now)]
        if not found:
            return ""
        return min(
            found, key=lambda engine: (not engine.well(now), engine.load, engine.legs, engine.used)
        ).addr

    def begun(self, addr: str, weight: int = 1) -> None:
        engine = self.all[addr]
        self._turn += 1
        engine.used = self._turn
        engine.legs += 1
        engine.load += weight

    def ended(self, addr: str, weight: int = 1) -> None:
        """To be called once for each `begun`."""
        engine = self.all[addr]
        engine.legs -= 1
        engine.load -= weight

    def answered(self, addr: str) -> None:
        self.all[addr].failures = 0
        self.all[addr].rests_until = 0.0

    def failed(self, addr: str, now: float) -> None:
        """Legs that were on their way together are one failure."""
        engine = self.all[addr]
        if now >= engine.rests_until:
            engine.failures += 1
            engine.rests_until = now + pause_s(engine.failures, LEAST_REST_S, MOST_REST_S, 1.0)

    def late(self, addr: str) -> bool:
        """A health check that was not answered in time; whether that makes the engine unwell, and is news."""
        engine = self.all[addr]
        engine.late += 1
        return engine.late >= LATE_CHECKS and self._now_is(engine, healthy=False)

    def checked(self, addr: str, healthy: bool) -> bool:
        """A health check's outcome; whether that is news."""
        engine = self.all[addr]
        engine.late = 0
        return self._now_is(engine, healthy)

    def _now_is(self, engine: Engine, healthy: bool) -> bool:
        changed, engine.healthy = engine.healthy != healthy, healthy
        if changed and healthy:
            self.answered(engine.addr)
        return changed

    @property
    def any_healthy(self) -> bool:
        return any(engine.healthy for engine in self.all.values())
