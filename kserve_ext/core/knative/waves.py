"""Who is scaled when: a burst from zero goes out in waves, as fast as Kubernetes takes it; nothing goes down then.

A hundred scales written in one second make every controller work through all of them stage by stage, so that the
median waits for the last one. With a few outstanding, the first are ready while the others are still in line, and
the last is no later. A place is free again when the target's own controller has made the pod (not when that is
ready), or after PATIENCE_S: a controller that is stuck on one must not hold up the others. First come, first served.

What is to shrink costs the API server as much as what is woken, and nobody waits for it: while somebody is in line it
waits as well, but not for longer than MOST_KEPT_S, for those in line may need the room.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

#: On an API server that shares two cores with everything else, more made bursts of 25 and 100 slower.
MOST = 8
PATIENCE_S = 3.0
MOST_KEPT_S = 30.0

K = TypeVar("K", bound=Hashable)


class Waves(Generic[K]):
    def __init__(self, most: int = MOST, patience_s: float = PATIENCE_S) -> None:
        self._most = most
        self._patience_s = patience_s
        #: woken, and until when their place is theirs; deadlines only rise
        self._under_way: dict[K, float] = {}
        #: in order of arrival; disjoint with the above
        self._line: dict[K, None] = {}
        #: to shrink later, and when at the latest; deadlines only rise
        self._kept: dict[K, float] = {}
        #: were kept, and may shrink now; disjoint with the above
        self._named: set[K] = set()

    def enter(self, key: K, now: float) -> bool:
        """Whether it may be woken now. If not, it is in line, and named by `free` in its turn."""
        self._forget_shrinking(key)
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

    def shrink(self, key: K, now: float) -> bool:
        """Whether it may shrink now. If not, `free` names it once it may."""
        self._line.pop(key, None)
        if self._line and key not in self._named:
            self._kept.setdefault(key, now + MOST_KEPT_S)
            return False
        self._forget_shrinking(key)
        return True

    def leave(self, key: K) -> None:
        """Its pod has been made."""
        self._under_way.pop(key, None)
        self._line.pop(key, None)

    def free(self, now: float) -> list[K]:
        """Those who may enter, and those who may shrink from now on; forgets what has had its time."""
        self._expire(now)
        ahead = self._most - len(self._under_way)
        entering = [key for number, key in enumerate(self._line) if number < ahead]
        shrinking = [key for key, until in self._kept.items() if not self._line or until <= now]
        for key in shrinking:
            del self._kept[key]
        self._named.update(shrinking)
        return entering + shrinking

    def withdraw(self, key: K) -> None:
        """It need not be scaled any more; if it was woken already, its place stays taken."""
        self._line.pop(key, None)
        self._forget_shrinking(key)

    def busy(self, now: float) -> bool:
        """Somebody is being woken, or is in line."""
        self._expire(now)
        return bool(self._under_way or self._line)

    @property
    def next_at(self) -> float | None:
        """When `free` names somebody at the latest, by time alone; None: nobody waits."""
        if not self._line:
            return None
        return min((*self._under_way.values(), *self._kept.values()), default=None)

    def _forget_shrinking(self, key: K) -> None:
        self._kept.pop(key, None)
        self._named.discard(key)

    def _expire(self, now: float) -> None:
        for key in [key for key, until in self._under_way.items() if until <= now]:
            del self._under_way[key]
