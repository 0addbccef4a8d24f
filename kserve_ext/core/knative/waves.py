"""Who is scaled when: a burst from zero goes out in waves, as fast as Kubernetes takes it; nothing goes down then.

A hundred scales written in one second make every controller work through all of them stage by stage, so that the
median waits for the last one. With a few outstanding, the first are ready while the others are still in line, and
the last is no later. A place is free again when there is a pod (not when that is ready), or after PATIENCE_S: a
controller that is stuck on one must not hold up the others. First come, first served.

It is a burst once somebody had to stand in line, until CALM_S after the last has its pod. What is to shrink costs the
API server as much as what is woken, and nobody waits for it: after the burst it goes in order, as many a second as
are woken at a time. The burst may need the room: what has waited for MOST_KEPT_S goes while it lasts, but few of it.
(400 at once, two cores: with all of them, starts fell from 8 a second to 2 once the first had waited so long.)
A burst may never end: what has waited for LONGEST_S goes whatever it does, so that the last of N that came together
is named after LONGEST_S + N / MOST_OVERDUE seconds at the latest.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice
from typing import Generic, TypeVar

#: As many as keep Kubernetes' controllers at work, five workers each, where the API server takes 0.2 s a request.
MOST = 16
PATIENCE_S = 3.0
CALM_S = 2.0
MOST_KEPT_S = 30.0
PACE_S = 1.0
#: In a burst so many go at a time.
MOST_IN_BURST = 2
#: Longer than a burst of 400 on two cores takes.
LONGEST_S = 120.0
#: So many that have waited for longer go at a time: half of what goes when nobody is woken, for the sake of who is.
MOST_OVERDUE = MOST // 2

K = TypeVar("K", bound=Hashable)


class Waves(Generic[K]):
    def __init__(self, most: int = MOST, patience_s: float = PATIENCE_S) -> None:
        self._most = most
        self._patience_s = patience_s
        #: woken, and until when their place is theirs; deadlines only rise
        self._under_way: dict[K, float] = {}
        #: had their time and have no pod yet, and until when the burst waits for it; disjoint with the above
        self._late: dict[K, float] = {}
        #: in order of arrival; disjoint with the above
        self._line: dict[K, None] = {}
        self._burst = False
        #: when the burst is over, if nobody is woken without a pod, or in line
        self._calm_at = 0.0
        #: to shrink later, and since when; times only rise
        self._kept: dict[K, float] = {}
        #: were kept and may shrink, until when; disjoint with the above
        self._named: dict[K, float] = {}
        #: before it none of the kept is named
        self._next_at = 0.0

    def enter(self, key: K, now: float) -> bool:
        """Whether it may be woken now. If not, it is in line, and named by `free` in its turn."""
        self._expire(now)
        self._forget_shrinking(key)
        if key in self._under_way:
            return True
        self._line.setdefault(key)
        if key not in islice(self._line, max(0, self._most - len(self._under_way))):
            self._burst = True
            return False
        del self._line[key]
        self._late.pop(key, None)
        self._under_way[key] = now + self._patience_s
        return True

    def shrink(self, key: K, now: float) -> bool:
        """Whether it may shrink now. If not, `free` names it once it may."""
        if self.keep(key, now):
            return False
        self._forget_shrinking(key)
        return True

    def keep(self, key: K, now: float) -> bool:
        """Whether it has to wait before it shrinks: then it is named later. Uses up no turn."""
        self._line.pop(key, None)
        self._expire(now)
        if key in self._named or not (self._kept or self.busy(now)):
            return False
        self._kept.setdefault(key, now)
        return True

    def shrinks_later(self, key: K) -> bool:
        return key in self._kept

    def leave(self, key: K, now: float) -> None:
        """There is a pod of it."""
        woken = self._under_way.pop(key, None), self._late.pop(key, None)
        if woken != (None, None):
            self._calm_at = now + CALM_S
        self._line.pop(key, None)

    def goes_on(self, now: float) -> None:
        """It is a burst, of revisions that have been woken another way."""
        self._burst = True
        self._calm_at = max(self._calm_at, now + CALM_S)

    def free(self, now: float) -> list[K]:
        """Those who may enter, and those who may shrink from now on; forgets what has had its time."""
        self._expire(now)
        entering = list(islice(self._line, max(0, self._most - len(self._under_way))))
        if not self._kept or now < self._next_at:
            return entering
        shrinking = self._due(now) if self.busy(now) else list(islice(self._kept, self._most))
        if shrinking:
            self._next_at = now + PACE_S
        for key in shrinking:
            del self._kept[key]
            self._named[key] = now + MOST_KEPT_S
        return entering + shrinking

    def withdraw(self, key: K) -> None:
        """It need not be scaled for now; if it was woken already, its place stays taken.

        Nor does it lose its turn to shrink: before a revision goes to zero its activators are asked whether they have
        it, and each time until they have answered it is not to be scaled.
        """
        self._line.pop(key, None)

    def busy(self, now: float) -> bool:
        """Whether this is a burst."""
        self._expire(now)
        if self._quiet and now >= self._calm_at:
            self._burst = False
        return self._burst

    @property
    def next_at(self) -> float | None:
        """When to look at `free` again, if nothing happens before; None: nobody waits."""
        times = list(self._under_way.values()) if self._line or self._kept else []
        if self._kept:
            due = next(iter(self._kept.values())) + MOST_KEPT_S if self._burst else self._next_at
            times.append(max(self._next_at, min(due, self._calm_at) if self._quiet else due))
        return min(times, default=None)

    @property
    def _quiet(self) -> bool:
        return not (self._under_way or self._late or self._line)

    def _due(self, now: float) -> list[K]:
        """Those of the kept that shrink while the burst lasts."""
        most = min(self._most, MOST_OVERDUE)
        first = list(islice(self._kept.items(), most))
        overdue = [key for key, since in first if since + LONGEST_S <= now]
        due = [key for key, since in first[:MOST_IN_BURST] if since + MOST_KEPT_S <= now]
        return max(overdue, due, key=len)  # one begins with the other

    def _forget_shrinking(self, key: K) -> None:
        self._kept.pop(key, None)
        self._named.pop(key, None)

    def _expire(self, now: float) -> None:
        for key, until in [(key, until) for key, until in self._under_way.items() if until <= now]:
            del self._under_way[key]
            self._late[key] = until + MOST_KEPT_S
        for waiting in (self._late, self._named):
            for key in [key for key, until in waiting.items() if until <= now]:
                del waiting[key]
