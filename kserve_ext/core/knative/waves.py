"""How many revisions are woken at once: a burst goes out in waves, as fast as Kubernetes takes it.

A hundred scales written in one second make every controller work through all of them stage by stage, so that the
median waits for the last one. With a few outstanding, the first are ready while the others are still in line, and
the last is no later. A place is free again when the target's own controller has made the pod (not when that is
ready), or after PATIENCE_S: a controller that is stuck on one must not hold up the others. First come, first served.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

#: On an API server that shares two cores with everything else, more made bursts of 25 and 100 slower.
MOST = 8
PATIENCE_S = 3.0

K = TypeVar("K", bound=Hashable)


class Waves(Generic[K]):
    def __init__(self, most: int = MOST, patience_s: float = PATIENCE_S) -> None:
        self._most = most
        self._patience_s = patience_s
        #: woken, and until when their place is theirs; deadlines only rise
        self._under_way: dict[K, float] = {}
        #: in order of arrival; disjoint with the above
        self._line: dict[K, None] = {}

    def enter(self, key: K, now: float) -> bool:
        """Whether it may be woken now. If not, it is in line, and named by `free` in its turn."""
        self._expire(now)
        if key in self._under_way:
            return True
        self._line.setdefault(key)
        ahead = self._most - len(self._under_way)
        for number, waiting in enumerate(self._line):
            if number >= ahead:
                return False
            if waiting == key:
                break
        del self._line[key]
        self._under_way[key] = now + self._patience_s
        return True

    def leave(self, key: K) -> None:
        """Its pod has been made, or it is gone itself."""
        self._under_way.pop(key, None)
        self._line.pop(key, None)

    def free(self, now: float) -> list[K]:
        """Those of the line that may enter; forgets what has had its time."""
        self._expire(now)
        ahead = self._most - len(self._under_way)
        return [key for number, key in enumerate(self._line) if number < ahead]

    def withdraw(self, key: K) -> None:
        """It need not be woken any more; if it was already, its place stays taken."""
        self._line.pop(key, None)

    @property
    def next_at(self) -> float | None:
        """When a place gets free at the latest; None: nobody is in line."""
        return min(self._under_way.values(), default=None) if self._line else None

    def _expire(self, now: float) -> None:
        for key in [key for key, until in self._under_way.items() if until <= now]:
            del self._under_way[key]
